"""A plan as `plan.yaml` and back: one line a value, in the order of the graph, safe to edit by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from exactq.errors import UsageError, unknown
from exactq.numerics.formats import Format, format_named, spelled
from exactq.plans.plan import (
    Dynamic,
    Edge,
    Fixed,
    FixedChannels,
    Float,
    Fused,
    Granularity,
    Own,
    PerChannel,
    PerTensor,
    Plan,
    Product,
    Same,
    Slot,
)
from exactq.plans.yamlfile import read_yaml

VERSION = 1
ARROW = " -> "


def to_yaml(plan: Plan) -> str:
    """The plan as YAML text; `from_yaml` reads the same plan back."""
    head = {"exactq": VERSION, "target": plan.target, "isa": plan.isa, "recipe": plan.recipe}
    lines = [*(f"{key}: {_flow(value)}" for key, value in head.items()), "values:"]
    lines += [f"  {_flow(name)}: {_flow(_written(slot))}" for name, slot in plan.slots.items()]
    if plan.edges:
        lines.append("edges:")
        lines += [f"  {_flow(e.value + ARROW + e.user)}: {_flow(_written(slot))}" for e, slot in plan.edges.items()]
    return "\n".join(lines) + "\n"


def from_yaml(text: str, origin: str = "plan.yaml") -> Plan:
    """The plan of a YAML text; raises `UsageError` naming the line's value, the field and what is allowed."""
    document = read_yaml(text, origin)
    if not isinstance(document, dict) or not isinstance(document.get("values"), dict):
        raise UsageError(f"{origin} is not a plan: it needs the fields exactq, target, isa, recipe and values")
    if type(document.get("exactq")) is not int or document["exactq"] != VERSION:
        raise UsageError(f"{origin} has the version {document.get('exactq')!r}; this exactq reads version {VERSION}")
    if extra := [str(key) for key in document if key not in _FIELDS]:
        raise UsageError(f"{origin}: {unknown('field', extra[0], _FIELDS)}")
    for key in ("target", "isa", "recipe"):
        if not isinstance(document.get(key), str):
            raise UsageError(f"{origin} has no `{key}`, or one that is no text: {document.get(key)!r}")
    slots = {_text(f"{origin}: the name", name): _read(f"{origin}: `{name}`", f) for name, f in document["values"].items()}
    lines = document.get("edges", {})
    if not isinstance(lines, dict):
        raise UsageError(f"{origin}: edges is {lines!r}; it needs lines of the form 'value{ARROW}user: …'")
    edges = {}
    for name, fields in lines.items():
        edge = _edge(_text(f"{origin}: the edge", name), slots, origin)
        edges[edge] = _read(f"{origin}: edge `{name}`", fields)
    try:
        return Plan(document["target"], document["isa"], document["recipe"], slots, edges)
    except UsageError as error:
        raise UsageError(f"{origin}: {error}") from error


_FIELDS = ("exactq", "target", "isa", "recipe", "values", "edges")


def _edge(name: str, slots: dict[str, Slot], origin: str) -> Edge:
    """The edge of that name; where the arrow stands in a value's own name too, the one between two values of the plan."""
    parts = name.split(ARROW)
    splits = [Edge(ARROW.join(parts[:n]), ARROW.join(parts[n:])) for n in range(1, len(parts))]
    if not splits:
        raise UsageError(f"{origin}: the edge '{name}' is not of the form 'value{ARROW}user'")
    return next((e for e in splits if e.value in slots and e.user in slots), splits[0])


def _flow(data: Any) -> str:
    """Data on one line, plain where that reads back the same; what cannot be printed is escaped, in double quotes."""
    text = yaml.safe_dump(data, default_flow_style=True, sort_keys=False, width=_ENDLESS, allow_unicode=True)
    text = text.removesuffix("\n").removesuffix("\n...")
    if not text.isprintable():
        text = yaml.safe_dump(data, default_flow_style=True, sort_keys=False, width=_ENDLESS, default_style='"')
    return text.removesuffix("\n")


_ENDLESS = 10**9


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
        case FixedChannels(fmt, scales, zeros, axis, reason):
            some = {"zeros": list(zeros)} if any(zeros) else {}
            return {"fixed-channels": spelled(fmt), "scales": list(scales), **some, "axis": axis, "reason": reason}
        case Dynamic(fmt, reason, reduced):
            half = {"reduce_range": True} if reduced else {}
            return {"dynamic": spelled(fmt), **half, "reason": reason}
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
        return read(fields, _text("reason", fields.get("reason", "asked for in the plan")))
    except (UsageError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from error


def _own(f: dict[str, Any], reason: str) -> Slot:
    per: Granularity
    match f.get("per", "tensor"):
        case "tensor":
            if "axis" in f:
                raise ValueError("axis has a meaning only with 'per: channel'")
            per = PerTensor()
        case "channel":
            per = PerChannel(_integer("axis", f.get("axis", 0)))
        case other:
            raise ValueError(f"per is '{other}'; allowed: tensor, channel")
    return Own(
        _format(f["own"]), _text("observer", f["observer"]), reason, per, _boolean("symmetric", f.get("symmetric", False))
    )


def _text(what: str, value: Any) -> str:
    """A text; a number is one too, as in the name of a layer in a sequence. Everything else has lost its spelling."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UsageError(f"{what} is {value!r}; it needs a text: write it in quotes")
    return str(value)


def _format(value: Any) -> Format:
    return format_named(_text("the format", value))


def _integer(what: str, value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{what} is {value!r}; it needs a whole number")
    return value


def _number(what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):  # YAML reads 1e-3, without a point, as a text
        raise ValueError(f"{what} is {value!r}; it needs a number")
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{what} is {value!r}; it needs a number") from None


def _boolean(what: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{what} is {value!r}; allowed: true, false")
    return value


def _product(f: dict[str, Any], reason: str) -> Slot:
    if not isinstance(f["product"], list) or len(f["product"]) != 2:
        raise ValueError(f"product is {f['product']!r}; it needs the names of two values")
    a, b = (_text("product", name) for name in f["product"])
    return Product((a, b), _format(f["format"]), reason)


def _channels(f: dict[str, Any], reason: str) -> Slot:
    scales = tuple(_number("scales", scale) for scale in _list("scales", f["scales"]))
    zeros = tuple(_integer("zeros", zero) for zero in _list("zeros", f.get("zeros", [0] * len(scales))))
    return FixedChannels(_format(f["fixed-channels"]), scales, zeros, _integer("axis", f["axis"]), reason)


def _list(what: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what} is {value!r}; it needs a list of numbers")
    return value


_OPTIONAL = {"own": ("per", "axis", "symmetric"), "fixed-channels": ("zeros",), "dynamic": ("reduce_range",)}
_READERS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any], str], Slot]]] = {
    "own": (("observer",), _own),
    "same": ((), lambda f, reason: Same(_text("same", f["same"]), reason)),
    "product": (("format",), _product),
    "fixed": (
        ("scale", "zero"),
        lambda f, reason: Fixed(_format(f["fixed"]), _number("scale", f["scale"]), _integer("zero", f["zero"]), reason),
    ),
    "fixed-channels": (("scales", "axis"), _channels),
    "dynamic": (
        (),
        lambda f, reason: Dynamic(_format(f["dynamic"]), reason, _boolean("reduce_range", f.get("reduce_range", False))),
    ),
    "fused": ((), lambda f, reason: Fused(_text("fused", f["fused"]), reason)),
    "float": ((), lambda f, _: Float(_text("float", f["float"]))),
}
