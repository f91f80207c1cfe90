"""The pairs of products that vpmaddubsw adds in saturating int16, the weights that cannot saturate, and what saturation costs.

K runs over (kernel axes, input channel) with the channel fastest, within a group; pair p holds K = 2p and 2p + 1, and an odd K
ends with a zero. sat16(a₀·w₀ + a₁·w₁) takes the raw codes a in 0..255, before the zero point is subtracted, and pixels of
padding are the zero code (ORT 1.31.1, measured: targets/onnxruntime/README.md). As 255·128 < 2¹⁵ < 255·129, no input saturates
pair (w₀, w₁) if and only if max(w₀,0) + max(w₁,0) ≤ 128 and max(−w₀,0) + max(−w₁,0) ≤ 128; a pair that fails this has both
weights of one sign.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

PAIR_LIMIT = 128
"""The largest pair sum (`pair_sums`) that no u8 input saturates."""

_BUDGET = 2**22
"""How many products are held at a time: 16 MiB of float32."""


def kernel_order(weight: Tensor) -> Tensor:
    """The rows (out, K) that the kernel reads of (out, in/groups, *kernel) or (out, in): K = (kernel axes, channel)."""
    return weight.flatten(2).transpose(1, 2).flatten(1) if weight.ndim > 2 else weight


def pair_sums(weight: Tensor) -> Tensor:
    """The larger of max(w₀,0) + max(w₁,0) and max(−w₀,0) + max(−w₁,0) for each pair: (out, ⌈K/2⌉), in the dtype of `weight`.

    Integer weights are taken as int32; real ones (weight / scale) give real sums. A pair saturates for some input if and only
    if its sum exceeds `PAIR_LIMIT`.

    >>> pair_sums(torch.tensor([[127, 2, -127, 127, 5]], dtype=torch.int8))
    tensor([[129, 127,   5]], dtype=torch.int32)
    """
    rows = kernel_order(weight if weight.is_floating_point() else weight.to(torch.int32))
    pairs = F.pad(rows, (0, rows.shape[1] % 2)).unflatten(1, (-1, 2))
    return torch.maximum(pairs.clamp(min=0).sum(2), pairs.clamp(max=0).neg().sum(2)).to(rows.dtype)


def saturating_pairs(weight: Tensor) -> Tensor:
    """Which pairs some u8 input saturates: bool (out, ⌈K/2⌉). None does: the integers are the same with and without VNNI."""
    return pair_sums(weight) > PAIR_LIMIT


def convolution_excess(
    weight: Tensor, *, zero: int, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Callable[[Tensor], Tensor] | None:
    """What saturation adds to a convolution's sums, as a function of raw codes: Σ over pairs of sat16(p) − p, float32.

    None if no pair can saturate. Only the pairs that can are computed, gathered by the kernel taps they touch.
    """
    rank, channels = weight.ndim - 2, weight.shape[1]
    found = saturating_pairs(weight).nonzero()
    if not len(found):
        return None
    rows = kernel_order(weight.float())
    per_group = weight.shape[0] // groups
    taps = [divmod_all(tap, weight.shape[2:]) for tap in range(weight[0, 0].numel())]
    # (tap of w0, tap of w1) -> its pairs: output, channels of x, weights.
    entries = sorted((2 * p // channels, (2 * p + 1) // channels, o, p) for o, p in found.tolist())
    batches = []
    for (tap0, tap1), members in groupby(entries, key=lambda entry: entry[:2]):
        listed = list(members)
        out = torch.tensor([o for _, _, o, _ in listed])
        k = torch.tensor([2 * p for _, _, _, p in listed])
        base = out // per_group * channels
        w0, w1 = (rows[out, k + n].reshape(-1, *[1] * (rank + 1)) for n in (0, 1))
        batches.append((taps[tap0], taps[tap1], out, base + k % channels, base + (k + 1) % channels, w0, w1))
    # A pair is off by less than 2¹⁵, so float32 holds the sum of 512 of them.
    dtype = torch.float32 if int(found[:, 0].bincount().max()) <= 512 else torch.float64
    begins, ends = padding[:rank], padding[rank:]
    pads = tuple(n for side in zip(begins[::-1], ends[::-1], strict=True) for n in side)
    extent = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]

    def excess(codes: Tensor) -> Tensor:
        raw = codes.to(torch.float32)
        raw = F.pad(raw, pads, value=zero) if any(pads) else raw
        raw = raw.transpose(0, 1)  # (channel, batch, *image): an entry is a contiguous row
        sizes = [(n - e) // s + 1 for n, e, s in zip(raw.shape[2:], extent, stride, strict=True)]

        def at(tap: tuple[int, ...]) -> Tensor:
            view = raw
            for axis, (index, d, s, n) in enumerate(zip(tap, dilation, stride, sizes, strict=True), start=2):
                view = view.narrow(axis, index * d, (n - 1) * s + 1)[(slice(None),) * axis + (slice(None, None, s),)]
            return view

        total = raw.new_zeros((weight.shape[0], raw.shape[1], *sizes), dtype=dtype)
        step = max(1, _BUDGET // total[0].numel())
        for tap0, tap1, out, c0, c1, w0, w1 in batches:
            view0, view1 = at(tap0), at(tap1)
            for part in torch.arange(len(out)).split(step):
                pair = view0[c0[part]].mul_(w0[part]).add_(view1[c1[part]].mul_(w1[part]))
                total.index_add_(0, out[part], pair.clamp(-32768, 32767).sub_(pair).to(dtype))
        return total.transpose(0, 1)

    return excess


def matrix_excess(weight: Tensor) -> Callable[[Tensor], Tensor] | None:
    """What saturation adds to x·weightᵀ, as a function of the raw codes x (…, K); None if no pair can saturate."""
    excess = convolution_excess(weight.unsqueeze(2), zero=0, stride=(1,), padding=(0, 0), dilation=(1,), groups=1)
    if excess is None:
        return None

    def of_rows(codes: Tensor) -> Tensor:
        # Rows become the pixels of one image with K channels.
        rows = codes.reshape(-1, codes.shape[-1]).T.unsqueeze(0)
        return excess(rows)[0].T.reshape(*codes.shape[:-1], -1)

    return of_rows


def product_excess(a: Tensor, b: Tensor) -> Tensor:
    """What saturation adds to a @ b, raw u8 codes (…, M, K) by s8 codes (…, K, N): float64, each pair computed."""
    a, b = a.float(), b.float()
    odd = a.shape[-1] % 2
    a, b = F.pad(a, (0, odd)), F.pad(b, (0, 0, 0, odd))
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    total = a.new_zeros((*batch, a.shape[-2], b.shape[-1]), dtype=torch.float64)
    step = max(1, min(256, _BUDGET // max(1, total.numel())))
    for pairs in torch.arange(a.shape[-1] // 2).split(step):
        a0, a1 = (a[..., 2 * pairs + n].unsqueeze(-1) for n in (0, 1))  # (…, M, pairs, 1)
        b0, b1 = (b[..., 2 * pairs + n, :].unsqueeze(-3) for n in (0, 1))  # (…, 1, pairs, N)
        pair = (a0 * b0).add_(a1 * b1)
        total += pair.clamp(-32768, 32767).sub_(pair).sum(-2)
    return total


def divmod_all(index: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """The position in an array of these sizes, last axis fastest, of a flat index.

    >>> divmod_all(5, (2, 3))
    (1, 2)
    """
    position: list[int] = []
    for size in reversed(sizes):
        index, rest = divmod(index, size)
        position.insert(0, rest)
    return tuple(position)
