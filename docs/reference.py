"""Make docs/cli.md, and the tables between marks of the other pages, from the program itself.

`python docs/reference.py --write`; tests/test_docs.py says when that is due.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from typer.main import get_command

from exactq.cli import VERBS, app

PAGE = Path(__file__).with_name("cli.md")
MARKED = re.compile(r"<!-- ([\w ]+) -->\n.*?<!-- end -->", re.DOTALL)

BEGIN = """\
# The shell door

<!-- made by docs/reference.py from the program itself: edit the docstrings and help texts, not this page -->

The result goes to stdout; talk, questions and progress go to stderr. With `--json` stdout is one JSON document. Questions
are asked only where stdin, stdout and stderr are a terminal, bars are drawn only where stderr is one.

| exit code | meaning |
|---|---|
| 0 | yes |
| 1 | the honest answer is no: over the accuracy budget, integers differ, nothing could be quantized, or you said no |
| 2 | misuse or bad input, told in one line on stderr; nothing half-written is left |
| 3 | a bug of exactq |
| 130, 143 | interrupted by Ctrl-C, by SIGTERM; stages that were finished are kept, and the same command goes on from there |

| variable | meaning |
|---|---|
| `EXACTQ_CACHE` | where trained references are kept; `~/.cache/exactq` without it |
| `EXACTQ_DATA` | the folder in which `cifar10/` lies |
| `EXACTQ_TRACEBACK=1` | show the traceback of whatever goes wrong |
| `NO_COLOR=1` | no colours |
"""


def page() -> str:
    """The text of docs/cli.md."""
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    return "\n".join([BEGIN, *(verb(commands[function.__name__], inspect.getdoc(function) or "") for function in VERBS)])


def verb(command: Any, doc: str) -> str:
    """One verb's section: its usage, what it does, and a row for each argument and option."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    required = "".join(f" {p.opts[-1]} {p.metavar}" for p in options if p.required)
    usage = f"exactq {command.name}{''.join(f' {p.metavar}' for p in arguments)}{required} [OPTIONS]"
    rows = [(f"`{p.metavar}`", "", p.help) for p in arguments] + [(spelled(p), default(p), p.help) for p in options]
    shown = table(("argument or option", "default", "meaning"), rows)
    return f"## {command.name}\n\n```text\n{usage}\n```\n\n{doc}\n\n{shown}\n"


def spelled(option: Any) -> str:
    """The option's names, and what stands for its value."""
    value = f" {option.metavar}" if option.metavar and not option.is_flag else ""
    return ", ".join(f"`{name}{value}`" for name in option.opts)


def default(option: Any) -> str:
    """The option's default, if it has one that says something."""
    return "" if option.is_flag or option.default is None or option.required else f"`{option.default}`"


def cell(text: str) -> str:
    """Text as it may stand in a table."""
    return text.replace("|", "\\|")


def table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    """A table of Markdown."""
    lines = (head, ("---",) * len(head), *rows)
    return "\n".join("| " + " | ".join(cell(str(value)) for value in line) + " |" for line in lines)


def tables() -> dict[str, str]:
    """Name of a table -> its text, from the records that the program itself reads."""
    from exactq.calibration import OBSERVERS
    from exactq.datasets.catalog import LOADERS
    from exactq.metrics import METRICS
    from exactq.models.catalog import MODELS
    from exactq.numerics.formats import spelled as format_spelled
    from exactq.plans.recipes import RECIPES
    from exactq.quantization.weights import WEIGHT_OBSERVERS
    from exactq.targets import TARGETS

    models = [(f"`{m.name}`", "×".join(map(str, m.shape)), m.classes, m.description) for m in MODELS.values()]
    recipes = []
    for r in RECIPES.values():
        rules = "; ".join(f"{x.match}: {'float' if x.weights is None else format_spelled(x.weights)}" for x in r.rules)
        formats = (
            format_spelled(r.weights),
            format_spelled(r.activations),
            r.weight_observer,
            "at run time" if r.dynamic else r.activation_observer,
        )
        recipes.append((f"`{r.name}`", *formats, rules))
    return {
        "models": table(("model", "image", "classes", "what it is"), models),
        "data": table(("`--data`", "what it is"), [(f"`{x.usage}`", x.description) for x in LOADERS.values()]),
        "metrics": ", ".join(f"`{name}`" for name in METRICS),
        "recipes": table(("recipe", "weights", "activations", "weight observer", "activation observer", "rules"), recipes),
        "observers": ", ".join(f"`{name}`" for name in OBSERVERS),
        "weight observers": ", ".join(f"`{name}`" for name in WEIGHT_OBSERVERS),
        "targets": table(
            ("target", "measured instruction sets"),
            [(f"`{t.name}`", ", ".join(f"`{isa}`" for isa in t.isas)) for t in TARGETS.values()],
        ),
    }


def filled(text: str) -> str:
    """A page with what stands between `<!-- NAME -->` and `<!-- end -->` made anew; an unknown name is a KeyError."""
    known = tables()
    return MARKED.sub(lambda found: f"<!-- {found[1]} -->\n{known[found[1]]}\n<!-- end -->", text)


def pages() -> dict[Path, str]:
    """Each page that is made, or holds a part that is, with its text as it should be."""
    others = {path: path.read_text(encoding="utf-8") for path in PAGE.parent.glob("*.md") if path != PAGE}
    return {PAGE: page()} | {path: filled(text) for path, text in others.items() if MARKED.search(text)}


if __name__ == "__main__" and "--write" in sys.argv:
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
