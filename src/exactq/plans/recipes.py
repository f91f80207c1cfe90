"""Recipes: wishes about formats, by operator or by name, from which a plan is made. A rule that matches nothing is an error."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from exactq.errors import UsageError, unknown
from exactq.numerics.formats import INT4, INT8, UINT8, Format, format_named


@dataclass(frozen=True)
class Match:
    """Which layers a rule speaks of: those of an operator (`linear`, `conv`), or those whose name fits a pattern (`layer1.*`)."""

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
        return self.op in (short, short.rstrip("123d") if short.startswith("conv") else short)


@dataclass(frozen=True)
class Rule:
    """A wish for the layers that `match` speaks of: another weight format, or to stay float; the reason goes into the plan."""

    match: Match
    reason: str
    weights: Format | None = None
    stay_float: bool = False


@dataclass(frozen=True)
class Recipe:
    """Formats and observers for weights and activations, and rules for the layers that differ."""

    name: str
    weights: Format = INT8.narrow
    activations: Format = UINT8
    weight_observer: str = "minmax"
    activation_observer: str = "minmax"
    rules: tuple[Rule, ...] = ()


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

RECIPES = {r.name: r for r in (W8A8, W8A8_LINEAR_W4, PORTABLE)}


def recipe_named(name: str) -> Recipe:
    """The built-in recipe of that name, or the one in the YAML file of that path."""
    if name in RECIPES:
        return RECIPES[name]
    if name.endswith((".yaml", ".yml")):
        return _from_file(Path(name))
    raise unknown("recipe", name, [*RECIPES, "FILE.yaml"])


def _from_file(path: Path) -> Recipe:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"the recipe {path} does not exist") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"the recipe {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise UsageError(f"the recipe {path} is not a table of fields: {', '.join(_FIELDS)}")
    for key in document:
        if key not in _FIELDS:
            raise unknown(f"field of {path}", str(key), _FIELDS)
    texts: dict[str, Any] = {k: document[k] for k in ("weight_observer", "activation_observer") if k in document}
    formats = {k: format_named(str(document[k])) for k in ("weights", "activations") if k in document}
    rules = tuple(_rule(path, r) for r in document.get("rules") or ())
    return Recipe(str(document.get("name", path.stem)), rules=rules, **formats, **texts)


_FIELDS = ("name", "weights", "activations", "weight_observer", "activation_observer", "rules")


def _rule(path: Path, fields: Any) -> Rule:
    allowed = ("match", "reason", "weights", "float")
    if not isinstance(fields, dict) or not isinstance(fields.get("match"), dict):
        raise UsageError(f"{path}: the rule {fields!r} needs `match: {{op: …}}` or `match: {{name: …}}`")
    for key in fields:
        if key not in allowed:
            raise unknown(f"field of a rule in {path}", str(key), allowed)
    for key in fields["match"]:
        if key not in ("op", "name"):
            raise unknown(f"field of a match in {path}", str(key), ("op", "name"))
    weights = format_named(str(fields["weights"])) if "weights" in fields else None
    return Rule(
        Match(**{k: str(v) for k, v in fields["match"].items()}),
        str(fields.get("reason", f"asked for in {path.name}")),
        weights,
        bool(fields.get("float", False)),
    )
