"""A plan as `plan.yaml` and back: one line a value, in the order of the graph, safe to edit by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from exactq.errors import UsageError, unknown
from exactq.numerics.formats import format_named, spelled
from exactq.plans.plan import Edge, Fixed, Float, Fused, Granularity, Own, PerChannel, PerTensor, Plan, Product, Same, Slot

VERSION = 1
ARROW = " -> "


def to_yaml(plan: Plan) -> str:
    """The plan as YAML text; `from_yaml` reads the same plan back."""
    head = {"exactq": VERSION, "target": plan.target, "isa": plan.isa, "recipe": plan.recipe}
    lines = [yaml.safe_dump(head, sort_keys=False).strip(), "values:"]
    lines += [f"  {_key(name)}: {_flow(_written(slot))}" for name, slot in plan.slots.items()]
    if plan.edges:
        lines.append("edges:")
        lines += [f"  {_key(e.value + ARROW + e.user)}: {_flow(_written(slot))}" for e, slot in plan.edges.items()]
    return "\n".join(lines) + "\n"


def from_yaml(text: str, origin: str = "plan.yaml") -> Plan:
    """The plan of a YAML text; raises `UsageError` naming the line's value, the field and what is allowed."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{origin} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict) or not isinstance(document.get("values"), dict):
        raise UsageError(f"{origin} is not a plan: it needs the fields exactq, target, isa, recipe and values")
    if document.get("exactq") != VERSION:
        raise UsageError(f"{origin} has the version {document.get('exactq')!r}; this exactq reads version {VERSION}")
    if extra := sorted(set(map(str, document)) - {"exactq", "target", "isa", "recipe", "values", "edges"}):
        raise unknown(f"field of {origin}", extra[0], ["exactq", "target", "isa", "recipe", "values", "edges"])
    for key in ("target", "isa", "recipe"):
        if not isinstance(document.get(key), str):
            raise UsageError(f"{origin} has no `{key}`, or one that is no text: {document.get(key)!r}")
    slots = {str(name): _read(f"{origin}: `{name}`", fields) for name, fields in document["values"].items()}
    edges = {}
    for name, fields in (document.get("edges") or {}).items():
        value, arrow, user = str(name).partition(ARROW)
        if not arrow:
            raise UsageError(f"{origin}: the edge '{name}' is not of the form 'value{ARROW}user'")
        edges[Edge(value, user)] = _read(f"{origin}: edge `{name}`", fields)
    return Plan(document["target"], document["isa"], document["recipe"], slots, edges)


def _key(name: str) -> str:
    return yaml.safe_dump(name, width=10_000).strip().removesuffix("\n...").strip()


def _flow(fields: dict[str, Any]) -> str:
    return yaml.safe_dump(fields, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True).strip()


def _written(slot: Slot) -> dict[str, Any]:
    match slot:
        case Own(fmt, observer, reason, per, symmetric):
            axis = {"per": "tensor"} if isinstance(per, PerTensor) else {"per": "channel", "axis": per.axis}
            return {"own": spelled(fmt), **axis, "observer": observer, "symmetric": symmetric, "reason": reason}
        case Same(of, reason):
            return {"same": of, "reason": reason}
        case Product(of, fmt, reason):
            return {"product": list(of), "format": spelled(fmt), "reason": reason}
        case Fixed(fmt, scale, zero, reason):
            return {"fixed": spelled(fmt), "scale": scale, "zero": zero, "reason": reason}
        case Fused(into, reason):
            return {"fused": into, "reason": reason}
        case Float(reason):
            return {"float": reason}


def _read(where: str, fields: Any) -> Slot:
    if not isinstance(fields, dict) or not fields:
        raise UsageError(f"{where} is {fields!r}; it needs one of {', '.join(_READERS)}")
    kind = str(next(iter(fields)))
    if kind not in _READERS:
        raise UsageError(f"{where}: {unknown('kind of slot', kind, _READERS)}")
    required, read = _READERS[kind]
    if missing := [f for f in required if f not in fields]:
        raise UsageError(f"{where}: the field '{missing[0]}' is missing; '{kind}' needs {', '.join((kind, *required))}")
    if extra := [str(f) for f in fields if f not in (kind, "reason", *required, *_OPTIONAL.get(kind, ()))]:
        raise UsageError(f"{where}: {unknown('field', extra[0], (kind, 'reason', *required, *_OPTIONAL.get(kind, ())))}")
    try:
        return read(fields, str(fields.get("reason", "asked for in the plan")))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from error


def _own(f: dict[str, Any], reason: str) -> Slot:
    per: Granularity
    match f.get("per", "tensor"):
        case "tensor":
            per = PerTensor()
        case "channel":
            per = PerChannel(int(f.get("axis", 0)))
        case other:
            raise ValueError(f"per is '{other}'; allowed: tensor, channel")
    return Own(format_named(str(f["own"])), str(f["observer"]), reason, per, _boolean(f.get("symmetric", False)))


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"symmetric is {value!r}; allowed: true, false")
    return value


def _product(f: dict[str, Any], reason: str) -> Slot:
    if not isinstance(f["product"], list) or len(f["product"]) != 2:
        raise ValueError(f"product is {f['product']!r}; it needs the names of two values")
    a, b = f["product"]
    return Product((str(a), str(b)), format_named(str(f["format"])), reason)


_OPTIONAL = {"own": ("per", "axis", "symmetric")}
_READERS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any], str], Slot]]] = {
    "own": (("observer",), _own),
    "same": ((), lambda f, reason: Same(str(f["same"]), reason)),
    "product": (("format",), _product),
    "fixed": (
        ("scale", "zero"),
        lambda f, reason: Fixed(format_named(str(f["fixed"])), float(f["scale"]), int(f["zero"]), reason),
    ),
    "fused": ((), lambda f, reason: Fused(str(f["fused"]), reason)),
    "float": ((), lambda f, _: Float(str(f["float"]))),
}
