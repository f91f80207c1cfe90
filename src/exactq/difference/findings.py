"""What `diff` found, as data and as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from exactq.difference.causes import Cause


@dataclass(frozen=True)
class TensorDiff:
    """One tensor of both: how many elements differ end to end and by how many codes at most, and given equal values before it.

    `relative` is the root mean square of the difference over that of the first's values; None where those are all zero.
    """

    name: str
    elements: int
    mismatches: int
    max_lsb: float
    given_equal: int
    given_equal_lsb: float
    relative: float | None


@dataclass(frozen=True)
class FoundCause:
    """A cause: the share of the elements that part, given equal values before them, which it moves, and its largest step.

    `together` is the share that is as the second execution has it once this cause and those listed before it are exchanged;
    None where there is one cause only, or one that is no part to exchange. `outputs` is the share of the model's outputs that
    it moves when it acts alone in the whole network; `places` are the tensors where it acts, the most first.
    """

    cause: Cause
    share: float
    max_lsb: float
    remedy: str
    together: float | None
    outputs: float | None
    places: tuple[str, ...]


@dataclass(frozen=True)
class Diff:
    """Where two executions part: `first` is the first tensor that differs given equal values before it, or None.

    `unseen`: tensors that were not compared -> the execution that does not show them.
    """

    a: str
    b: str
    inputs: int
    first: str | None
    causes: tuple[FoundCause, ...]
    tensors: tuple[TensorDiff, ...]
    unseen: Mapping[str, str]

    @property
    def equal(self) -> bool:
        """Whether something was compared and nothing differs."""
        return bool(self.tensors) and not any(t.mismatches or t.given_equal for t in self.tensors)

    def __str__(self) -> str:
        return text(self)

    def to_json(self) -> dict[str, Any]:
        """The findings as plain data."""
        return {
            "a": self.a,
            "b": self.b,
            "inputs": self.inputs,
            "first": self.first,
            "causes": [
                {
                    "cause": c.cause.value,
                    "share": c.share,
                    "max_lsb": c.max_lsb,
                    "remedy": c.remedy,
                    "together": c.together,
                    "outputs": c.outputs,
                    "places": list(c.places),
                }
                for c in self.causes
            ],
            "tensors": [
                {
                    "name": t.name,
                    "elements": t.elements,
                    "mismatches": t.mismatches,
                    "max_lsb": t.max_lsb,
                    "given_equal": {"mismatches": t.given_equal, "max_lsb": t.given_equal_lsb},
                    "relative": t.relative,
                }
                for t in self.tensors
            ],
            "unseen": dict(self.unseen),
        }


def text(found: Diff) -> str:
    """The findings for a reader: what was compared, where they part, the causes, and the tensors that differ."""
    lines = [f"{found.a} beside {found.b}, {found.inputs} inputs, {sum(t.elements for t in found.tensors):,} elements"]
    lines += [f"not compared: `{name}`, which {by} does not show" for name, by in found.unseen.items()]
    if found.equal:
        return "\n".join([*lines, "equal: every element"])
    where = "no tensor parts" if found.first is None else f"first apart at `{found.first}`,"
    lines.append(f"{where} given equal values before it")
    lines += ["", "causes, by the share of the elements that part which each of them moves"]
    for c in found.causes:
        places = ", ".join(c.places[:3]) + (f" and {len(c.places) - 3} more" if len(c.places) > 3 else "")
        lines.append(f"  {c.cause.value:38}{c.share:7.2%}  up to {c.max_lsb:g} LSB, at {places}")
        more = [] if c.together is None else [f"with those above {c.together:.2%} are explained"]
        more += [] if c.outputs is None else [f"alone it moves {c.outputs:.2%} of the network's outputs"]
        lines += [f"      {line}" for line in wrap("; ".join([*more, c.remedy]), 72)]
    lines += ["", f"  {'tensor':24}{'elements':>10}{'differ':>9}{'LSB':>6}{'given equal':>13}{'LSB':>6}{'relative':>10}"]
    for t in found.tensors:
        if t.mismatches or t.given_equal:
            relative = "" if t.relative is None else f"{t.relative:.1e}"
            lines.append(
                f"  {t.name:24}{t.elements:>10,}{t.mismatches / t.elements:>9.2%}{t.max_lsb:>6g}"
                f"{t.given_equal / t.elements:>13.2%}{t.given_equal_lsb:>6g}{relative:>10}"
            )
    return "\n".join(lines)
