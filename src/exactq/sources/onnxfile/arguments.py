"""What the operators' tables share: an operator's function, and arguments that have to be known while reading."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from exactq.errors import ModelError
from exactq.sources.onnxfile.drafts import Draft, Value
from exactq.sources.onnxfile.reading import Node

aten = torch.ops.aten

Read = Callable[..., Any]
"""An ONNX node as ATen calls: (draft, node, its inputs, None for one that is left out) -> its value, or a tuple of them."""


def tensor(value: Value | None, what: str) -> Tensor:
    """A value that has to be known; raises `ModelError` where the model computes it, or where it is left out."""
    if not isinstance(value, Tensor):
        raise ModelError(f"its {what} is {'left out' if value is None else 'computed by the model'}: a constant is needed")
    return value


def integers(value: Value | None, what: str) -> list[int]:
    """A known list of whole numbers."""
    known = tensor(value, what)
    if known.is_floating_point() or known.ndim > 1:
        raise ModelError(f"its {what} is {list(known.shape)} of {known.dtype}: a list of whole numbers is needed")
    return [int(v) for v in known.reshape(-1).tolist()]


def number(value: Value | None, what: str) -> float | int:
    """A known single number."""
    known = tensor(value, what)
    if known.numel() != 1:
        raise ModelError(f"its {what} has {known.numel()} values: one is needed")
    return known.reshape(()).item()


def given(node: Node, name: str, value: Value | None, *, before: int, draft: Draft) -> list[int] | None:
    """Whole numbers that were an attribute before opset `before` and are an input since; None where they are left out."""
    if draft.opset < before:
        found = node.get(name, None)
        return None if found is None else [int(v) for v in found]
    return None if value is None else integers(value, name)


def axis_of(axis: int, rank: int) -> int:
    """A dimension from 0 up; raises `ModelError` for one that is not there.

    >>> axis_of(-1, 4)
    3
    """
    if not -rank <= axis < rank:
        raise ModelError(f"it names dimension {axis} of {rank}")
    return axis % rank if rank else 0


def spatial(draft: Draft, x: Value) -> int:
    """How many dimensions there are behind sample and channel: 1, 2 or 3."""
    rank = len(draft.shape(x)) - 2
    if rank not in (1, 2, 3):
        raise ModelError(f"it works on {len(draft.shape(x))} dimensions: 3, 4 or 5 are read")
    return rank


def listed(node: Node, name: str, default: int, rank: int) -> list[int]:
    """An attribute of one number a spatial dimension."""
    values = [int(v) for v in node.get(name, [default] * rank)]
    if len(values) != rank:
        raise ModelError(f"its {name} {values} are not those of {rank} dimensions")
    return values


def pads(node: Node, sizes: list[int], windows: list[int], strides: list[int]) -> tuple[list[int], list[int]]:
    """Padding before and behind each spatial dimension, `auto_pad` worked out; a window is what a kernel spans."""
    rank, auto = len(sizes), node.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        # As many results as strides begun.
        totals = [max((-(-n // s) - 1) * s + w - n, 0) for n, w, s in zip(sizes, windows, strides, strict=True)]
        less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
        return (less, more) if auto == "SAME_UPPER" else (more, less)
    if auto not in ("NOTSET", "VALID"):
        raise ModelError(f"its auto_pad is '{auto}'")
    both = [0] * (2 * rank) if auto == "VALID" else listed(node, "pads", 0, 2 * rank)
    return both[:rank], both[rank:]


def padded(draft: Draft, x: Value, before: list[int], behind: list[int], value: float) -> Value:
    """`x` with `value` around its last dimensions."""
    pairs = [side for pair in zip(reversed(before), reversed(behind), strict=True) for side in pair]
    return draft.call(aten.constant_pad_nd.default, x, pairs, value) if any(pairs) else x


def view(draft: Draft, x: Value, sizes: list[int]) -> Value:
    """`x` in another shape of as many elements."""
    if prod(sizes) != prod(draft.shape(x)):
        raise ModelError(f"it makes {sizes} of {list(draft.shape(x))}, which has another number of elements")
    if isinstance(x, Tensor):
        return draft.like(x.reshape(sizes), x)
    return x if list(draft.shape(x)) == sizes else draft.call(aten.view.default, x, sizes)
