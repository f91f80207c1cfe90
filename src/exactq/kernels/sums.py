"""Exact integer convolutions and products in float storage: the accumulators of every integer library.

A sum of products of integers is exact in float32, in any order of summation and with or without fused multiply-add, as long
as no partial sum can leave ±2²⁴. A term w·x with x in lo..hi, lo ≤ 0 ≤ hi, lies in −n..p for the p, n ≥ 0 of its sign, so
every partial sum lies in −Σn..Σp: `reach`, a bound on the weights alone, half of Σ|w|·max|x| for weights that are as often
negative as positive. Beyond it the input channels are split into runs that each stay inside, summed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from exactq.errors import ModelError

EXACT = 2**24
"""The largest magnitude below which float32 holds every integer."""

Sums = Callable[[Tensor], Tensor]
"""Centred codes (code − zero, float32) -> exact sums, float32 where `reach` allows it and float64 elsewhere."""


def reach(weight: Tensor, lo: int, hi: int) -> Tensor:
    """The largest magnitude of any partial sum of weight·x over x in lo..hi, for each row of the first axis; float64."""
    flat = weight.flatten(1).double()
    positive, negative = flat.clamp(min=0).sum(1), flat.clamp(max=0).neg().sum(1)
    return torch.maximum(positive * hi - negative * lo, negative * hi - positive * lo)


def largest(weight: Tensor, bias: Tensor | None, lo: int, hi: int) -> float:
    """The largest magnitude of any sum of any row over x in lo..hi, with the bias."""
    return float(reach(weight, lo, hi).add(0 if bias is None else bias.double().abs()).max())


def runs(weight: Tensor, lo: int, hi: int) -> list[slice] | None:
    """Runs of the second axis (input channels) whose `reach` stays exact, few and long; None if one channel alone leaves it.

    >>> runs(torch.full((1, 5, 1), 127.0), 0, 2**16 - 1)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    flat = weight.reshape(*weight.shape[:2], -1).double()
    positive, negative = flat.clamp(min=0).sum(2), flat.clamp(max=0).neg().sum(2)
    costs = torch.stack((positive * hi - negative * lo, negative * hi - positive * lo)).flatten(0, 1)  # (2·out, channels)
    if bool((costs > EXACT).any()):
        return None
    found, start, so_far = [], 0, torch.zeros_like(costs[:, 0])
    for channel in range(costs.shape[1]):
        so_far = so_far + costs[:, channel]
        if bool((so_far > EXACT).any()):
            found.append(slice(start, channel))
            start, so_far = channel, costs[:, channel]
    return [*found, slice(start, costs.shape[1])]


def convolution_sums(
    weight: Tensor,
    bias: Tensor | None,
    *,
    lo: int,
    hi: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Sums:
    """The convolution with `weight` (out, in/groups, *kernel) plus `bias`, exact for centred codes in lo..hi.

    `padding` has two numbers an axis, all begins before all ends as in ONNX; the padding is with 0.
    """
    rank = weight.ndim - 2
    begins, ends = tuple(padding[:rank]), tuple(padding[rank:])
    convolve: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    # F.pad counts from the last axis.
    uneven = () if begins == ends else tuple(n for side in zip(begins[::-1], ends[::-1], strict=True) for n in side)
    inner = (0,) * rank if uneven else begins

    def linear(x: Tensor, part: Tensor, addend: Tensor | None) -> Tensor:
        return convolve(x, part, addend, tuple(stride), inner, tuple(dilation), groups)

    def run_of(x: Tensor, run: slice) -> Tensor:
        return x.unflatten(1, (groups, -1))[:, :, run].flatten(1, 2)

    sums = _sums(weight, bias, lo=lo, hi=hi, linear=linear, run_of=run_of, shape=(-1, *[1] * rank))
    return sums if not uneven else lambda x: sums(F.pad(x, uneven))


def matrix_sums(weight: Tensor, bias: Tensor | None, *, lo: int, hi: int) -> Sums:
    """x·weightᵀ + bias with `weight` (out, in), exact for centred codes in lo..hi; x has any leading axes."""
    return _sums(weight, bias, lo=lo, hi=hi, linear=F.linear, run_of=lambda x, run: x[..., run], shape=(-1,))


def product_sums(a: Tensor, b: Tensor, *, reach_a: int, reach_b: int) -> Tensor:
    """a @ b, exact for centred codes of magnitudes up to `reach_a` and `reach_b`; both may be batched and broadcast."""
    if a.device.type != "cpu":
        return (a.double() @ b.double()).round_()
    depth, step = a.shape[-1], max(1, EXACT // (reach_a * reach_b))
    with exact_float32():
        if depth <= step:
            return a @ b
        parts = [(a[..., k : k + step] @ b[..., k : k + step, :]).double() for k in range(0, depth, step)]
    return torch.stack(parts).sum(0)


def _sums(
    weight: Tensor,
    bias: Tensor | None,
    *,
    lo: int,
    hi: int,
    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    run_of: Callable[[Tensor, slice], Tensor],
    shape: tuple[int, ...],
) -> Sums:
    if not lo <= 0 <= hi:
        raise ModelError(f"centred codes run through 0, not {lo}..{hi}: the zero must be a code of the format")
    single, double = weight.float(), weight.double()
    addend, offset = (None, None) if bias is None else (bias.float(), bias.double().reshape(shape))
    whole = largest(weight, bias, lo, hi) <= EXACT
    parts = [slice(0, weight.shape[1])] if whole else runs(weight, lo, hi)

    def exact(x: Tensor) -> Tensor:
        # Only the CPU's float32 is known to be neither TF32 nor Winograd; the error of a float64 sum rounds away.
        if x.device.type != "cpu" or parts is None:
            total = linear(x.double(), double.to(x.device), None).round_()
        elif whole:
            with exact_float32():
                return linear(x, single, addend)
        else:
            with exact_float32():
                total = linear(run_of(x, parts[0]), single[:, parts[0]], None).double()
                for run in parts[1:]:
                    total += linear(run_of(x, run), single[:, run], None)
        return total if offset is None else total.add_(offset.to(x.device))

    return exact


@contextmanager
def exact_float32() -> Iterator[None]:
    """A context in which a CPU float32 product is one: no autocast, no bf16 or TF32 inside oneDNN, no Winograd by NNPACK.

    Settings are left as they were found. Within `torch.compile` there is nothing to do at run time, so it does nothing: compile
    without autocast and with full precision.
    """
    if torch.compiler.is_compiling():
        yield
        return
    engines = (torch.backends.mkldnn.conv, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    lowered = [(engine, engine.fp32_precision) for engine in engines if engine.fp32_precision not in ("none", "ieee")]
    nnpack = torch.backends.nnpack.set_flags(False)
    try:
        for engine, _ in lowered:
            engine.fp32_precision = "ieee"
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                yield
        else:
            yield
    finally:
        torch.backends.nnpack.set_flags(*nnpack)
        for engine, precision in lowered:
            engine.fp32_precision = precision
