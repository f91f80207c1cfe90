"""Recipes: wishes about formats, by operator or by name, from which a plan is made. A rule that matches nothing is an error."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from exactq.errors import UsageError, unknown
from exactq.numerics.formats import INT3, INT4, INT8, UINT4, UINT8, Format, format_named
from exactq.plans.yamlfile import read_yaml


@dataclass(frozen=True)
class Match:
    """Which layers a rule speaks of: those of an operator (`linear`, `conv`), or those whose name fits a glob (`layer1.*`)."""

    op: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if (self.op is None) == (self.name is None):
            raise UsageError("a rule's `match` needs exactly one of `op` and `name`")

    def __str__(self) -> str:
        return f"op {self.op}" if self.op else f"name {self.name}"

    def fits(self, name: str, op: str) -> bool:
        """Whether the layer `name` of operator `op` (`aten.conv2d`) is meant; `conv` means all its ranks."""
        if self.name is not None:
            return fnmatchcase(name, self.name)
        short = op.removeprefix("aten.")
        return self.op in (op, short, short.rstrip("123d") if short.startswith("conv") else short)


@dataclass(frozen=True)
class Rule:
    """A wish for the layers that `match` speaks of: another weight format, or to stay float; the reason goes into the plan."""

    match: Match
    reason: str
    weights: Format | None = None
    stay_float: bool = False

    def __post_init__(self) -> None:
        if (self.weights is None) != self.stay_float:
            raise UsageError(f"the rule for '{self.match}' needs exactly one of `weights` and `float: true`")


@dataclass(frozen=True)
class Recipe:
    """Formats and observers for weights and activations, and rules for the layers that differ.

    `multiplied` is the format of the activations that layers multiply with, where it is another; the model's inputs excepted,
    and what a clamp bounds from above, whose kernels end where the stored codes do. With `dynamic` only layers that lay a grid
    over their input when they see it are in integers: linear layers, on targets that have such.
    """

    name: str
    weights: Format = INT8.narrow
    activations: Format = UINT8
    weight_observer: str = "minmax"
    activation_observer: str = "minmax"
    rules: tuple[Rule, ...] = ()
    multiplied: Format | None = None
    dynamic: bool = False

    def __post_init__(self) -> None:
        if self.dynamic and self.multiplied is not None:
            raise UsageError(f"recipe '{self.name}' is dynamic and has `multiplied`: dynamic layers read `activations` alone")


W8A8 = Recipe("w8a8")
W8A8_LINEAR_W4 = Recipe(
    "w8a8-linear-w4",
    rules=(
        Rule(
            Match(op="linear"),
            "linear layers hold many weights that are each used once per sample: 4 bits cost least accuracy per byte there",
            weights=INT4.narrow,
        ),
    ),
)
PORTABLE = Recipe("portable", weight_observer="pairsafe")
"""Weights that no measured kernel saturates on: the same file gives the same integers on each of those instruction sets."""

W4A8 = Recipe("w4a8", weights=INT4.narrow)
W3A8 = Recipe("w3a8", weights=INT3.narrow)
W4A4 = Recipe("w4a4", weights=INT4.narrow, weight_observer="mse", activation_observer="mse", multiplied=UINT4)
"""Four bits on both sides of every product but the model's input, to be fine-tuned; what is only added keeps its 8 bits."""

DYNAMIC = Recipe("dynamic", dynamic=True)
"""Weights of linear layers in 8 bits, their activations quantized at run time, the rest in float: nothing to calibrate."""

RECIPES = {r.name: r for r in (W8A8, W8A8_LINEAR_W4, W4A8, W3A8, W4A4, PORTABLE, DYNAMIC)}


def recipe_named(name: str) -> Recipe:
    """The built-in recipe of that name, or the one in the YAML file of that path."""
    if name in RECIPES:
        return RECIPES[name]
    if name.endswith((".yaml", ".yml")):
        return _from_file(Path(name))
    raise unknown("recipe", name, [*RECIPES, "FILE.yaml"])


def _from_file(path: Path) -> Recipe:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"the recipe {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the recipe {path} cannot be read: {' '.join(str(error).split())}") from error
    document = _table(f"the recipe {path}", read_yaml(text, f"the recipe {path}"), _FIELDS)
    rules = document.get("rules", [])
    if not isinstance(rules, list):
        raise UsageError(f"the recipe {path}: rules is {rules!r}; it needs a list of rules, each with a `match`")
    formats = ("weights", "activations", "multiplied")
    given: dict[str, Any] = {k: _format(path, k, document[k]) for k in formats if k in document}
    given |= {k: _text(path, k, document[k]) for k in ("name", "weight_observer", "activation_observer") if k in document}
    given |= {k: _boolean(path, k, document[k]) for k in ("dynamic",) if k in document}
    return Recipe(**{"name": path.stem, **given}, rules=tuple(_rule(path, rule) for rule in rules))


_FIELDS = ("name", "weights", "activations", "multiplied", "weight_observer", "activation_observer", "dynamic", "rules")


def _table(what: str, fields: Any, allowed: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(fields, dict):
        raise UsageError(f"{what} is {fields!r:.80}; it needs a table of fields: {', '.join(allowed)}")
    for key in fields:
        if key not in allowed:
            raise unknown(f"field of {what}", str(key), allowed)
    return fields


def _text(path: Path, what: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"the recipe {path}: {what} is {value!r}; it needs a text")
    return value


def _boolean(path: Path, what: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"the recipe {path}: {what} is {value!r}; allowed: true, false")
    return value


def _format(path: Path, what: str, value: Any) -> Format:
    try:
        return format_named(_text(path, what, value))
    except UsageError as error:
        raise UsageError(f"the recipe {path}: {error}") from error


def _rule(path: Path, given: Any) -> Rule:
    fields = _table(f"a rule in {path}", given, ("match", "reason", "weights", "float"))
    match = _table(f"the match of a rule in {path}", fields.get("match"), ("op", "name"))
    stay_float = _boolean(path, "float", fields.get("float", False))
    try:
        return Rule(
            Match(**{k: _text(path, k, v) for k, v in match.items()}),
            _text(path, "reason", fields.get("reason", f"asked for in {path.name}")),
            _format(path, "weights", fields["weights"]) if "weights" in fields else None,
            stay_float,
        )
    except UsageError as error:
        raise error if str(path) in str(error) else UsageError(f"the recipe {path}: {error}") from error
