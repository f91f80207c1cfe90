"use strict";
// Everything is readable without this script: it brings a chosen layer beside the drawing, and the arrow keys.
const detail = document.getElementById("detail");
const boxes = [...document.querySelectorAll("a.box")];
function show(id) {
  const card = document.getElementById(id);
  if (!card || !detail) return;
  const copy = card.cloneNode(true);
  copy.removeAttribute("id");
  detail.replaceChildren(copy);
  for (const box of boxes) {
    if (box.getAttribute("href") === "#" + id) box.setAttribute("aria-current", "true");
    else box.removeAttribute("aria-current");
  }
}
const wide = window.matchMedia("(min-width: 860px)");
boxes.forEach((box, index) => {
  box.addEventListener("click", (event) => {
    event.preventDefault();
    show(box.getAttribute("href").slice(1));
    if (!wide.matches) detail.scrollIntoView({ block: "nearest" });
  });
  box.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    const next = step && boxes[index + step];
    if (!next) return;
    event.preventDefault();
    next.focus();
    show(next.getAttribute("href").slice(1));
  });
});
if (detail && detail.dataset.first) show(detail.dataset.first);
document.documentElement.classList.add("live");
