"""ONNX's movement of values, resizing, and what only works out shapes, as ATen calls: functions, and the table of them."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor, prod
from typing import Any

import torch
from torch import Tensor

from exactq.errors import ModelError
from exactq.sources.onnxfile.arguments import Read, axis_of, given, integers, number, padded, spatial, tensor, view
from exactq.sources.onnxfile.drafts import CONSTANT, Draft, Value
from exactq.sources.onnxfile.reading import DTYPES, Node

aten = torch.ops.aten

_REFLECT: dict[int, Any] = {
    1: aten.reflection_pad1d.default,
    2: aten.reflection_pad2d.default,
    3: aten.reflection_pad3d.default,
}
_EDGE: dict[int, Any] = {
    1: aten.replication_pad1d.default,
    2: aten.replication_pad2d.default,
    3: aten.replication_pad3d.default,
}
_NEAREST: dict[int, Any] = {1: aten.upsample_nearest1d.vec, 2: aten.upsample_nearest2d.vec, 3: aten.upsample_nearest3d.vec}
_LINEAR: dict[int, Any] = {1: aten.upsample_linear1d.vec, 2: aten.upsample_bilinear2d.vec, 3: aten.upsample_trilinear3d.vec}


WIDEST = 2**14
"""How many elements of a dimension are compared one by one."""


def _reshape(draft: Draft, node: Node, x: Value, shape: Value) -> Value:
    wanted, sizes = integers(shape, "shape"), draft.shape(x)
    if not node.get("allowzero", 0):
        if any(size == 0 and n >= len(sizes) for n, size in enumerate(wanted)):
            raise ModelError(f"its shape {wanted} copies a dimension that {list(sizes)} has not")
        wanted = [sizes[n] if size == 0 else size for n, size in enumerate(wanted)]
    if wanted.count(-1) == 1 and (rest := -prod(wanted)) > 0:
        wanted[wanted.index(-1)] = prod(sizes) // rest
    return view(draft, x, wanted)


def _flatten(draft: Draft, node: Node, x: Value) -> Value:
    sizes, axis = draft.shape(x), int(node.get("axis", 1))
    axis = axis if axis == len(sizes) else axis_of(axis, len(sizes))
    return view(draft, x, [prod(sizes[:axis]), prod(sizes[axis:])])


def _squeeze(draft: Draft, node: Node, x: Value, axes: Value | None = None) -> Value:
    sizes = draft.shape(x)
    chosen = given(node, "axes", axes, before=13, draft=draft)
    gone = [n for n, size in enumerate(sizes) if size == 1] if chosen is None else [axis_of(a, len(sizes)) for a in chosen]
    return view(draft, x, [size for n, size in enumerate(sizes) if n not in gone])


def _unsqueeze(draft: Draft, node: Node, x: Value, axes: Value | None = None) -> Value:
    chosen = given(node, "axes", axes, before=13, draft=draft) or []
    rank = len(draft.shape(x)) + len(chosen)
    new, sizes = {axis_of(a, rank) for a in chosen}, iter(draft.shape(x))
    if len(new) != len(chosen):
        raise ModelError(f"its axes {chosen} name a dimension twice")
    return view(draft, x, [1 if n in new else next(sizes) for n in range(rank)])


def _transpose(draft: Draft, node: Node, x: Value) -> Value:
    rank = len(draft.shape(x))
    order = [int(n) for n in node.get("perm", range(rank)[::-1])]
    return x if order == list(range(rank)) else draft.call(aten.permute.default, x, order)


def _concat(draft: Draft, node: Node, *parts: Value) -> Value:
    return parts[0] if len(parts) == 1 else draft.call(aten.cat.default, list(parts), int(node.get("axis", 0)))


def _slice(
    draft: Draft,
    node: Node,
    x: Value,
    starts: Value | None = None,
    ends: Value | None = None,
    axes: Value | None = None,
    steps: Value | None = None,
) -> Value:
    begin, end = (given(node, name, v, before=10, draft=draft) for name, v in (("starts", starts), ("ends", ends)))
    along, by = given(node, "axes", axes, before=10, draft=draft), None if steps is None else integers(steps, "steps")
    if begin is None or end is None:
        raise ModelError("its starts or ends are left out")
    along = list(range(len(begin))) if along is None else along
    for start, stop, axis, step in zip(begin, end, along, by or [1] * len(begin), strict=True):
        x = _sliced(draft, x, start, stop, axis_of(axis, len(draft.shape(x))), step)
    return x


def _sliced(draft: Draft, x: Value, start: int, stop: int, axis: int, step: int) -> Value:
    """One dimension; a step below zero goes over the dimension turned round."""
    size = draft.shape(x)[axis]
    chosen = range(*slice(max(start, -size) if step > 0 else start, stop, step).indices(size)) if step else range(0)
    if step < 0 and stop < -size:
        chosen = range(chosen.start, -1, step)
    if not step:
        raise ModelError("its step is 0")
    if chosen == range(size):
        return x
    if step < 0:
        x, chosen = draft.call(aten.flip.default, x, [axis]), range(size - 1 - chosen.start, size - 1 - chosen.stop, -step)
    return draft.call(aten.slice.Tensor, x, axis, chosen.start, chosen.stop, chosen.step)


def _split(draft: Draft, node: Node, x: Value, split: Value | None = None) -> tuple[Value, ...]:
    axis = axis_of(int(node.get("axis", 0)), len(draft.shape(x)))
    sizes, count = given(node, "split", split, before=13, draft=draft), len(node.outputs)
    if sizes is None:
        each = -(-draft.shape(x)[axis] // count)
        sizes = [each] * (count - 1) + [draft.shape(x)[axis] - each * (count - 1)]
    if len(sizes) != count or sum(sizes) != draft.shape(x)[axis] or min(sizes) < 0:
        raise ModelError(f"it splits {draft.shape(x)[axis]} into {sizes} for {count} results")
    ends = [sum(sizes[: n + 1]) for n in range(count)]
    return tuple(_sliced(draft, x, end - size, end, axis, 1) for size, end in zip(sizes, ends, strict=True))


def _pad(
    draft: Draft, node: Node, x: Value, pads: Value | None = None, fill: Value | None = None, axes: Value | None = None
) -> Value:
    rank = len(draft.shape(x))
    sides = given(node, "pads", pads, before=11, draft=draft) or []
    along = list(range(rank)) if axes is None else [axis_of(a, rank) for a in integers(axes, "axes")]
    if len(sides) != 2 * len(along):
        raise ModelError(f"its pads {sides} are not those of {len(along)} dimensions")
    before, behind = [0] * rank, [0] * rank
    for n, axis in enumerate(along):
        before[axis], behind[axis] = sides[n], sides[n + len(along)]
    mode, value = node.get("mode", "constant"), float(node.get("value", 0.0))
    if mode == "constant":
        first = next((n for n in range(rank) if before[n] or behind[n]), rank)
        value = value if fill is None else number(fill, "value")
        return padded(draft, x, before[first:], behind[first:], value)
    packet = {"reflect": _REFLECT, "edge": _EDGE}.get(mode)
    if packet is None or any(before[:2] + behind[:2]):
        raise ModelError(f"its mode '{mode}' is not read for padding {before} and {behind}")
    pairs = [side for pair in zip(before[:1:-1], behind[:1:-1], strict=True) for side in pair]
    return draft.call(packet[spatial(draft, x)], x, pairs)


def _resize(
    draft: Draft, node: Node, x: Value, roi: Value | None = None, scales: Value | None = None, sizes: Value | None = None
) -> Value:
    """Nearest or linear, where it is what ATen computes; which elements "nearest" takes is compared one by one."""
    if draft.opset < 11:
        roi, scales = None, roi
    rank, old = spatial(draft, x), draft.shape(x)
    if (
        node.get("antialias", 0)
        or node.get("axes", None) is not None
        or node.get("keep_aspect_ratio_policy", "stretch") != "stretch"
    ):
        raise ModelError("its antialias, axes or keep_aspect_ratio_policy is not read")
    if sizes is not None and draft.shape(sizes) != (0,):
        new = integers(sizes, "sizes")
        factors = [Fraction(n, o) for n, o in zip(new, old, strict=True)]
    else:
        factors = [Fraction(float(f)) for f in tensor(scales, "scales").reshape(-1).tolist()]
        new = [floor(o * f) for o, f in zip(old, factors, strict=True)]
    if new[:2] != list(old[:2]):
        raise ModelError(f"it resizes {list(old)} to {new}: only behind the channels")
    if new == list(old):
        return x
    mode, coordinates = node.get("mode", "nearest"), node.get("coordinate_transformation_mode", "half_pixel")
    if draft.opset < 11:
        coordinates = "asymmetric"
    if mode == "nearest":
        rounding = node.get("nearest_mode", "round_prefer_floor") if draft.opset >= 11 else "floor"
        for n, o, f in zip(new[2:], old[2:], factors[2:], strict=True):
            if _taken(n, o, f, coordinates, rounding) != _taken_by_aten(n, o):
                raise ModelError(f"it takes other elements of {o} for {n} ({coordinates}, {rounding}) than ATen does")
        return draft.call(_NEAREST[rank], x, new[2:], None)
    if mode != "linear":
        raise ModelError(f"its mode is '{mode}': nearest and linear are read")
    whole = all(o * f == n for n, o, f in zip(new, old, factors, strict=True))
    half = coordinates == "half_pixel" or (coordinates == "pytorch_half_pixel" and min(new[2:]) > 1)
    if not whole or not (half or coordinates == "align_corners"):
        raise ModelError(f"its {coordinates} from {list(old)} to {new} is not what ATen computes")
    return draft.call(_LINEAR[rank], x, new[2:], coordinates == "align_corners", None)


def _taken(new: int, old: int, factor: Fraction, coordinates: str, rounding: str) -> list[int]:
    """Which elements "nearest" takes, by the equations of ONNX's Resize."""
    where = {
        "half_pixel": lambda i: (i + Fraction(1, 2)) / factor - Fraction(1, 2),
        "pytorch_half_pixel": lambda i: (i + Fraction(1, 2)) / factor - Fraction(1, 2) if new > 1 else Fraction(0),
        "asymmetric": lambda i: i / factor,
        "align_corners": lambda i: Fraction(i * (old - 1), new - 1) if new > 1 else Fraction(0),
    }
    rounded = {
        "round_prefer_floor": lambda p: ceil(p - Fraction(1, 2)),
        "round_prefer_ceil": lambda p: floor(p + Fraction(1, 2)),
        "floor": floor,
        "ceil": ceil,
    }
    if coordinates not in where or rounding not in rounded or max(new, old) > WIDEST:
        raise ModelError(f"its {coordinates} with {rounding} from {old} to {new} is not read")
    return [min(max(rounded[rounding](where[coordinates](Fraction(i))), 0), old - 1) for i in range(new)]


def _taken_by_aten(new: int, old: int) -> list[int]:
    places = torch.arange(old, dtype=torch.float64).reshape(1, 1, -1)
    return [int(i) for i in aten.upsample_nearest1d.vec(places, [new], None).flatten().tolist()]


def _upsample(draft: Draft, node: Node, x: Value, scales: Value) -> Value:
    return _resize(draft, node, x, scales)


def _constant(draft: Draft, node: Node) -> Value:
    for name, value in node.attributes.items():
        match name, value:
            case ("value", Tensor()):
                return value
            case ("value_float", float()) | ("value_floats", list()):
                return torch.tensor(value, dtype=torch.float32)
            case ("value_int", int()) | ("value_ints", list()):
                return torch.tensor(value, dtype=torch.int64)
    raise ModelError("its value is no dense tensor of numbers")


def _shape(draft: Draft, node: Node, x: Value) -> Value:
    return torch.tensor(draft.shape(x)[int(node.get("start", 0)) : node.get("end", None)], dtype=torch.int64)


def _size(draft: Draft, node: Node, x: Value) -> Value:
    return torch.tensor(prod(draft.shape(x)), dtype=torch.int64)


def _gather(draft: Draft, node: Node, x: Value, indices: Value) -> Value:
    axis, known = axis_of(int(node.get("axis", 0)), len(draft.shape(x))), tensor(indices, "indices")
    size = draft.shape(x)[axis]
    if known.is_floating_point() or bool(((known < -size) | (known >= size)).any()):
        raise ModelError(f"its indices are not between {-size} and {size - 1}")
    if known.ndim == 0:
        return draft.call(aten.select.int, x, axis, int(known) % size)
    if known.ndim != 1:
        raise ModelError(f"its indices have {known.ndim} dimensions: none or one is read")
    return draft.call(aten.index_select.default, x, axis, known.long() % size)


def _cast(draft: Draft, node: Node, x: Value) -> Value:
    to = int(node.get("to", 0))
    if to not in DTYPES:
        raise ModelError("it casts to numbers that are not read")
    if draft.look(x).dtype == DTYPES[to]:
        return x
    return x.to(DTYPES[to]) if isinstance(x, Tensor) else draft.call(aten._to_copy.default, x, dtype=DTYPES[to])


def _range(draft: Draft, node: Node, start: Value, limit: Value, delta: Value) -> Value:
    first, end, step = (number(v, n) for v, n in ((start, "start"), (limit, "limit"), (delta, "delta")))
    if step == 0 or (end - first) / step > CONSTANT:
        raise ModelError(f"it counts from {first} to {end} by {step}")
    return torch.arange(first, max(first, end) if step > 0 else min(first, end), step, dtype=draft.look(start).dtype)


def _constant_of_shape(draft: Draft, node: Node, shape: Value) -> Value:
    sizes, value = integers(shape, "shape"), node.get("value", torch.zeros(1))
    if min([*sizes, 1]) < 0 or prod(sizes) > CONSTANT:
        raise ModelError(f"it makes {sizes}, which is too much or below zero")
    return torch.full(sizes, number(value, "value"), dtype=value.dtype)


def _expand(draft: Draft, node: Node, x: Value, shape: Value) -> Value:
    """To the larger of both sizes, dimension by dimension from behind."""
    wanted = list(torch.broadcast_shapes(draft.shape(x), integers(shape, "shape")))
    return x if wanted == list(draft.shape(x)) else draft.call(aten.expand.default, x, wanted)


def _tile(draft: Draft, node: Node, x: Value, repeats: Value) -> Value:
    return draft.call(aten.repeat.default, x, integers(repeats, "repeats"))


def _where(draft: Draft, node: Node, condition: Value, a: Value, b: Value) -> Value:
    return draft.call(aten.where.self, condition, a, b)


def _known(target: Any) -> Read:
    """Of values that are known while reading."""

    def read(draft: Draft, node: Node, *values: Value) -> Value:
        return draft.call(target, *(tensor(v, f"operand {n}") for n, v in enumerate(values)))

    return read


def _reduce_prod(draft: Draft, node: Node, x: Value, axes: Value | None = None) -> Value:
    chosen = given(node, "axes", axes, before=18, draft=draft)
    known = tensor(x, "operand")
    if chosen not in (None, [0]) or known.ndim != 1:
        raise ModelError("it multiplies more than a list of sizes")
    return known.prod().reshape([1] if node.get("keepdims", 1) else [])


MOVEMENT: dict[str, Read] = {
    "And": _known(aten.logical_and.default),
    "Cast": _cast,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Equal": _known(aten.eq.Tensor),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Greater": _known(aten.gt.Tensor),
    "Less": _known(aten.lt.Tensor),
    "Not": _known(aten.logical_not.default),
    "Or": _known(aten.logical_or.default),
    "Pad": _pad,
    "Range": _range,
    "ReduceProd": _reduce_prod,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Upsample": _upsample,
    "Where": _where,
}
"""ONNX operator -> how it is read."""
