"""ONNX's layers, activations and arithmetic as ATen calls: one function an operator and its versions, and the table of them."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from exactq.errors import ModelError
from exactq.sources.onnxfile.arguments import Read, axis_of, given, listed, number, padded, pads, spatial, tensor, view
from exactq.sources.onnxfile.drafts import Draft, Value
from exactq.sources.onnxfile.reading import Node

aten = torch.ops.aten

_CONV: dict[int, Any] = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
_TRANSPOSED: dict[int, Any] = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input, 3: aten.conv_transpose3d.input}
_MAX: dict[int, Any] = {1: aten.max_pool1d.default, 2: aten.max_pool2d.default, 3: aten.max_pool3d.default}
_AVERAGE: dict[int, Any] = {1: aten.avg_pool1d.default, 2: aten.avg_pool2d.default, 3: aten.avg_pool3d.default}
_ADAPTIVE: dict[int, Any] = {
    1: aten.adaptive_avg_pool1d.default,
    2: aten.adaptive_avg_pool2d.default,
    3: aten.adaptive_avg_pool3d.default,
}
_REPLICATE: dict[int, Any] = {
    1: aten.replication_pad1d.default,
    2: aten.replication_pad2d.default,
    3: aten.replication_pad3d.default,
}


def _conv(draft: Draft, node: Node, x: Value, weight: Value, bias: Value | None = None) -> Value:
    rank = spatial(draft, x)
    stride, dilation = listed(node, "strides", 1, rank), listed(node, "dilations", 1, rank)
    windows = [(k - 1) * d + 1 for k, d in zip(draft.shape(weight)[2:], dilation, strict=True)]
    before, behind = pads(node, list(draft.shape(x)[2:]), windows, stride)
    if before != behind or min(before) < 0:
        x, before = padded(draft, x, before, behind, 0.0), [0] * rank
    return draft.call(_CONV[rank], x, weight, bias, stride, before, dilation, int(node.get("group", 1)))


def _conv_transpose(draft: Draft, node: Node, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """ONNX crops `pads` off the full result, after `output_padding` more at the end; ATen crops the same on both sides."""
    rank = spatial(draft, x)
    stride, dilation = listed(node, "strides", 1, rank), listed(node, "dilations", 1, rank)
    extra, sizes = listed(node, "output_padding", 0, rank), draft.shape(x)[2:]
    windows = [(k - 1) * d + 1 for k, d in zip(draft.shape(weight)[2:], dilation, strict=True)]
    full = [s * (n - 1) + e + w for s, n, e, w in zip(stride, sizes, extra, windows, strict=True)]
    auto = node.get("auto_pad", "NOTSET")
    if "output_shape" in node.attributes or auto.startswith("SAME"):
        wanted = listed(node, "output_shape", 0, rank)
        if "output_shape" not in node.attributes:
            wanted = [n * s for n, s in zip(sizes, stride, strict=True)]
        totals = [f - w for f, w in zip(full, wanted, strict=True)]
        less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
        before, behind = (less, more) if auto == "SAME_UPPER" else (more, less)
    else:
        before, behind = pads(node, list(sizes), windows, stride)
    end = [b - e + o for b, e, o in zip(before, behind, extra, strict=True)]
    if min(before) < 0 or any(not 0 <= e < max(s, d) for e, s, d in zip(end, stride, dilation, strict=True)):
        raise ModelError(f"its padding {before} and {behind} cannot be that of a transposed convolution here")
    return draft.call(_TRANSPOSED[rank], x, weight, bias, stride, before, end, int(node.get("group", 1)), dilation)


def _batch_norm(draft: Draft, node: Node, x: Value, weight: Value, bias: Value, mean: Value, var: Value) -> Value:
    if node.get("training_mode", 0) or len([o for o in node.outputs if o]) > 1:
        raise ModelError("it normalises by the statistics of each batch: export the model in evaluation mode")
    momentum, eps = float(node.get("momentum", 0.9)), float(node.get("epsilon", 1e-5))
    return draft.call(aten.batch_norm.default, x, weight, bias, mean, var, False, 1 - momentum, eps, False)


def _layer_norm(draft: Draft, node: Node, x: Value, weight: Value, bias: Value | None = None) -> Value:
    axis = axis_of(int(node.get("axis", -1)), len(draft.shape(x)))
    sizes = list(draft.shape(x)[axis:])
    return draft.call(aten.layer_norm.default, x, sizes, weight, bias, float(node.get("epsilon", 1e-5)), False)


def _pool(draft: Draft, node: Node, x: Value) -> tuple[int, list[int], list[int], list[int], list[int], list[int], bool]:
    rank = spatial(draft, x)
    kernel, stride = listed(node, "kernel_shape", 1, rank), listed(node, "strides", 1, rank)
    dilation = listed(node, "dilations", 1, rank)
    windows = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    before, behind = pads(node, list(draft.shape(x)[2:]), windows, stride)
    return rank, kernel, stride, dilation, before, behind, bool(node.get("ceil_mode", 0))


def _max_pool(draft: Draft, node: Node, x: Value) -> Value:
    rank, kernel, stride, dilation, before, behind, ceil = _pool(draft, node, x)
    if before != behind:
        if ceil or any(d != 1 for d in dilation):
            raise ModelError(f"its padding {before} and {behind} is not read together with ceil_mode or dilations")
        if _not_negative(x):
            x = padded(draft, x, before, behind, 0.0)  # no maximum of numbers from 0 up changes by a 0
        else:
            # A window over an edge has the edge's element, so another one of it changes no maximum.
            pairs = [side for pair in zip(reversed(before), reversed(behind), strict=True) for side in pair]
            x = draft.call(_REPLICATE[rank], x, pairs)
        before = [0] * rank
    return draft.call(_MAX[rank], x, kernel, stride, before, dilation, ceil)


def _not_negative(x: Value) -> bool:
    while not isinstance(x, Tensor):
        if x.target in (aten.relu.default, aten.sigmoid.default):
            return True
        if x.target is aten.clamp.default:
            return x.args[1] is not None and float(x.args[1]) >= 0  # type: ignore[arg-type]
        if x.target not in _MAX.values():
            return False
        x = x.args[0]  # type: ignore[assignment]
    return False


def _average_pool(draft: Draft, node: Node, x: Value) -> Value:
    rank, kernel, stride, dilation, before, behind, ceil = _pool(draft, node, x)
    if any(d != 1 for d in dilation):
        raise ModelError(f"its dilations are {dilation}: only averages of neighbours are read")
    include = bool(node.get("count_include_pad", 0))
    if before == behind:
        return draft.call(_AVERAGE[rank], x, kernel, stride, before, ceil, include)
    if ceil:
        raise ModelError(f"its padding {before} and {behind} is not read together with ceil_mode")
    zeros = [0] * rank
    mean = draft.call(_AVERAGE[rank], padded(draft, x, before, behind, 0.0), kernel, stride, zeros)
    if include:
        return mean
    # Each window's mean over all its places, divided by the share of them that are not padding.
    ones = padded(draft, torch.ones(1, 1, *draft.shape(x)[2:]), before, behind, 0.0)
    return draft.call(aten.div.Tensor, mean, draft.call(_AVERAGE[rank], ones, kernel, stride, zeros))


def _global_average(draft: Draft, node: Node, x: Value) -> Value:
    rank = spatial(draft, x)
    return draft.call(_ADAPTIVE[rank], x, [1] * rank)


def _global_max(draft: Draft, node: Node, x: Value) -> Value:
    return draft.call(_MAX[spatial(draft, x)], x, list(draft.shape(x)[2:]))


def _reduce(target: Any) -> Read:
    def read(draft: Draft, node: Node, x: Value, axes: Value | None = None) -> Value:
        since = 13 if target is aten.sum.dim_IntList else 18
        rank = len(draft.shape(x))
        chosen = given(node, "axes", axes, before=since, draft=draft)
        if not chosen and node.get("noop_with_empty_axes", 0):
            return x
        dims = sorted({axis_of(a, rank) for a in chosen}) if chosen else list(range(rank))
        keep = bool(node.get("keepdims", 1))
        if target is aten.mean.dim and rank in (3, 4, 5) and dims == list(range(2, rank)):
            pooled = draft.call(_ADAPTIVE[rank - 2], x, [1] * (rank - 2))  # the same mean, which integer kernels know
            return pooled if keep else view(draft, pooled, list(draft.shape(x)[:2]))
        return draft.call(target, x, dims, keep)

    return read


def _gemm(draft: Draft, node: Node, a: Value, b: Value, c: Value | None = None) -> Value:
    """alpha·A·B + beta·C: a linear layer where B is known, with the factors in its constants."""
    alpha, beta = float(node.get("alpha", 1.0)), float(node.get("beta", 1.0))
    if node.get("transA", 0):
        a = draft.call(aten.permute.default, a, [1, 0])
    if not isinstance(b, Tensor) or (c is not None and not isinstance(c, Tensor)):
        return _computed_gemm(draft, node, a, b, c, alpha, beta)
    if b.ndim != 2:
        raise ModelError(f"its weights have {b.ndim} dimensions instead of 2")
    weight = b if node.get("transB", 0) else draft.like(b.t().contiguous(), b)
    if alpha != 1:
        weight = draft.like(weight * alpha, weight)
    if c is None:
        return draft.call(aten.linear.default, a, weight)
    if c.numel() not in (1, weight.shape[0]) or c.numel() != (c.shape[-1] if c.ndim else 1):
        return draft.call(aten.add.Tensor, draft.call(aten.linear.default, a, weight), c * beta)
    bias = c
    if bias.shape != weight.shape[:1] or beta != 1:
        bias = draft.like((bias.reshape(-1) * beta).expand(weight.shape[0]).contiguous(), bias)
    return draft.call(aten.linear.default, a, weight, bias)


def _computed_gemm(draft: Draft, node: Node, a: Value, b: Value, c: Value | None, alpha: float, beta: float) -> Value:
    if node.get("transB", 0):
        b = draft.call(aten.permute.default, b, [1, 0])
    made = draft.call(aten.matmul.default, a, b)
    made = made if alpha == 1 else draft.call(aten.mul.Tensor, made, alpha)
    if c is None:
        return made
    return draft.call(aten.add.Tensor, made, c if beta == 1 else draft.call(aten.mul.Tensor, c, beta))


def _clip(draft: Draft, node: Node, x: Value, lo: Value | None = None, hi: Value | None = None) -> Value:
    if draft.opset < 11:
        limits = [node.get(name, None) for name in ("min", "max")]
    else:
        limits = [None if v is None else number(v, name) for v, name in ((lo, "min"), (hi, "max"))]
    limits = [None if v in (-FLT_MAX, FLT_MAX, float("-inf"), float("inf")) else v for v in limits]
    return x if limits == [None, None] else draft.call(aten.clamp.default, x, *limits)


FLT_MAX = torch.finfo(torch.float32).max


def _leaky(draft: Draft, node: Node, x: Value) -> Value:
    return draft.call(aten.leaky_relu.default, x, float(node.get("alpha", 0.01)))


def _elu(draft: Draft, node: Node, x: Value) -> Value:
    return draft.call(aten.elu.default, x, float(node.get("alpha", 1.0)))


def _prelu(draft: Draft, node: Node, x: Value, slope: Value) -> Value:
    """ATen has a slope a channel, ONNX one that broadcasts."""
    known, sizes = tensor(slope, "slope"), draft.shape(x)
    flat = known.reshape(-1)
    if known.numel() != 1 and list(known.shape) != [sizes[1], *[1] * (len(sizes) - 2)][-known.ndim :]:
        raise ModelError(f"its slope has the sizes {list(known.shape)}: one value, or one a channel is read")
    return draft.call(aten.prelu.default, x, draft.like(flat, known))


def _hard_sigmoid(draft: Draft, node: Node, x: Value) -> Value:
    """max(0, min(1, alpha·x + beta)); ATen's has alpha 1/6."""
    alpha, beta = float(node.get("alpha", 0.2)), float(node.get("beta", 0.5))
    if abs(alpha - 1 / 6) < 1e-7 and beta == 0.5:
        return draft.call(aten.hardsigmoid.default, x)
    line = draft.call(aten.add.Tensor, draft.call(aten.mul.Tensor, x, alpha), beta)
    return draft.call(aten.clamp.default, line, 0.0, 1.0)


def _gelu(draft: Draft, node: Node, x: Value) -> Value:
    return draft.call(aten.gelu.default, x, approximate=node.get("approximate", "none"))


def _softmax(target: Any) -> Read:
    def read(draft: Draft, node: Node, x: Value) -> Value:
        sizes = list(draft.shape(x))
        if draft.opset >= 13:
            return draft.call(target, x, axis_of(int(node.get("axis", -1)), len(sizes)))
        axis = axis_of(int(node.get("axis", 1)), len(sizes))  # before opset 13 over all dimensions from `axis` on
        if all(size == 1 for size in sizes[axis + 1 :]):
            return draft.call(target, x, axis)
        flat = view(draft, x, [*sizes[:axis], prod(sizes[axis:])])
        return view(draft, draft.call(target, flat, axis), sizes)

    return read


def _unary(target: Any) -> Read:
    def read(draft: Draft, node: Node, x: Value) -> Value:
        return draft.call(target, x)

    return read


def _binary(target: Any) -> Read:
    """Of two values; a single number is written as such, where no dimension comes with it."""

    def read(draft: Draft, node: Node, a: Value, b: Value) -> Value:
        if isinstance(b, Tensor) and not isinstance(a, Tensor) and _lone(draft, a, b):
            return draft.call(target, a, b.reshape(()).item())
        return draft.call(target, a, b)

    return read


def _lone(draft: Draft, a: Value, b: Tensor) -> bool:
    return b.numel() == 1 and b.ndim <= len(draft.shape(a)) and b.dtype == draft.look(a).dtype


def _div(draft: Draft, node: Node, a: Value, b: Value) -> Value:
    """The quotient; of whole numbers its integer part."""
    if not draft.look(a).is_floating_point():
        return draft.call(aten.div.Tensor_mode, a, b, rounding_mode="trunc")
    return _binary(aten.div.Tensor)(draft, node, a, b)


def _pow(draft: Draft, node: Node, a: Value, b: Value) -> Value:
    if isinstance(b, Tensor) and b.numel() == 1 and b.ndim <= len(draft.shape(a)):
        return draft.call(aten.pow.Tensor_Scalar, a, b.reshape(()).item())
    return draft.call(aten.pow.Tensor_Tensor, a, b)


def _extreme(target: Any, clamp: Callable[[float], tuple[float | None, float | None]]) -> Read:
    """The maximum or minimum of any number of values; beside a single number it is a clamp."""

    def read(draft: Draft, node: Node, first: Value, *others: Value) -> Value:
        for other in others:
            if isinstance(first, Tensor) and not isinstance(other, Tensor):
                first, other = other, first
            if isinstance(other, Tensor) and not isinstance(first, Tensor) and _lone(draft, first, other):
                first = draft.call(aten.clamp.default, first, *clamp(other.reshape(()).item()))
            else:
                first = draft.call(target, first, other)
        return first

    return read


def _dropout(draft: Draft, node: Node, x: Value, ratio: Value | None = None, training: Value | None = None) -> Value:
    if training is not None and bool(number(training, "training_mode")):
        raise ModelError("it draws random numbers: export the model in evaluation mode")
    return x


def _same(draft: Draft, node: Node, x: Value) -> Value:
    return x


LAYERS: dict[str, Read] = {
    "Abs": _unary(aten.abs.default),
    "Add": _binary(aten.add.Tensor),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Ceil": _unary(aten.ceil.default),
    "Clip": _clip,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _div,
    "Dropout": _dropout,
    "Elu": _elu,
    "Erf": _unary(aten.erf.default),
    "Exp": _unary(aten.exp.default),
    "Floor": _unary(aten.floor.default),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(aten.hardswish.default),
    "Identity": _same,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": _leaky,
    "Log": _unary(aten.log.default),
    "LogSoftmax": _softmax(aten.log_softmax.int),
    "MatMul": lambda draft, node, a, b: draft.call(aten.matmul.default, a, b),
    "Max": _extreme(aten.maximum.default, lambda bound: (bound, None)),
    "MaxPool": _max_pool,
    "Min": _extreme(aten.minimum.default, lambda bound: (None, bound)),
    "Mul": _binary(aten.mul.Tensor),
    "Neg": _unary(aten.neg.default),
    "PRelu": _prelu,
    "Pow": _pow,
    "Reciprocal": _unary(aten.reciprocal.default),
    "ReduceMax": _reduce(aten.amax.default),
    "ReduceMean": _reduce(aten.mean.dim),
    "ReduceSum": _reduce(aten.sum.dim_IntList),
    "Relu": _unary(aten.relu.default),
    "Sigmoid": _unary(aten.sigmoid.default),
    "Softmax": _softmax(aten.softmax.int),
    "Softplus": _unary(aten.softplus.default),
    "Sqrt": _unary(aten.sqrt.default),
    "Sub": _binary(aten.sub.Tensor),
    "Tanh": _unary(aten.tanh.default),
}
"""ONNX operator -> how it is read."""
