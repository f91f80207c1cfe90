"""The pairs of products that vpmaddubsw adds in saturating int16, the weights that cannot saturate, and what saturation costs.

K runs over (kernel axes, input channel) with the channel fastest, within a group; pair p holds K = 2p and 2p + 1, and an odd K
ends with a zero. sat16(a₀·w₀ + a₁·w₁) takes the raw codes a in 0..255, before the zero point is subtracted, and pixels of
padding are the zero code (ORT 1.31.1, measured: targets/onnxruntime/README.md). As 255·128 < 2¹⁵ < 255·129, no input saturates
pair (w₀, w₁) if and only if max(w₀,0) + max(w₁,0) ≤ 128 and max(−w₀,0) + max(−w₁,0) ≤ 128; a pair that fails this has both
weights of one sign.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

PAIR_LIMIT = 128
"""The largest pair sum (`pair_sums`) that no u8 input saturates."""

_BUDGET = 2**20
"""How many products are held at a time: 4 MiB of float32."""


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


@dataclass(frozen=True)
class _Entries:
    """The saturating pairs whose weights sit on the same two taps: outputs, channels of x, and weights, one an entry."""

    taps: tuple[tuple[int, ...], tuple[int, ...]]
    out: Tensor
    channels: tuple[Tensor, Tensor]
    weights: tuple[Tensor, Tensor]

    def reached(self, peaks: Tensor, sums: Tensor) -> _Entries:
        """Those that may saturate for codes up to `peaks` (channel,), sums of neighbouring channels up to `sums`.

        |a₀·w₀ + a₁·w₁| = m·(a₀ + a₁) + (|w₀| − m)·a₀ + (|w₁| − m)·a₁ with m = min(|w₀|, |w₁|), as the signs are equal.
        """
        (c0, c1), (w0, w1) = self.channels, (w.abs() for w in self.weights)
        least, same = torch.minimum(w0, w1), self.taps[0] == self.taps[1]
        together = torch.where((c1 == c0 + 1) & same, sums[c0], peaks[c0] + peaks[c1])
        worst = least * together + (w0 - least) * peaks[c0] + (w1 - least) * peaks[c1]
        return self.at((worst > 32767).nonzero().squeeze(1))

    def at(self, index: Tensor) -> _Entries:
        (c0, c1), (w0, w1) = self.channels, self.weights
        return _Entries(self.taps, self.out[index], (c0[index], c1[index]), (w0[index], w1[index]))


def _entries(weight: Tensor, groups: int, *, within_taps: bool) -> list[_Entries]:
    present, per_group = weight.shape[1], weight.shape[0] // groups
    if within_taps:
        weight = F.pad(weight, (0, 0) * (weight.ndim - 2) + (0, present % 2))
    channels = weight.shape[1]
    out, pair = saturating_pairs(weight).nonzero().unbind(1)
    rows = kernel_order(weight.float())
    k = (2 * pair, 2 * pair + 1)
    both = k[0] // channels * weight[0, 0].numel() + k[1] // channels
    found = []
    for tap in both.unique().tolist():
        here = (both == tap).nonzero().squeeze(1)
        ks = k[0][here], k[1][here]
        base = out[here] // per_group * present  # a channel of padding has weight 0 and saturates nothing
        taps = tuple(divmod_all(int(n[0]) // channels, weight.shape[2:]) for n in ks)
        channel, weights = tuple(base + n % channels for n in ks), tuple(rows[out[here], n] for n in ks)
        found.append(_Entries(taps, out[here], channel, weights))  # type: ignore[arg-type]
    return found


def convolution_excess(
    weight: Tensor,
    *,
    zero: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    within_taps: bool = False,
) -> Callable[[Tensor], Tensor] | None:
    """What saturation adds to a convolution's sums, as a function of raw codes: Σ over pairs of sat16(p) − p.

    None if no pair can saturate. Only the pairs are computed that may with the largest codes that a batch has. Padding holds
    the code `zero`. Pairs `within_taps` never join channels of two taps: an odd number of channels ends with a zero (oneDNN).
    """
    rank, entries = weight.ndim - 2, _entries(weight, groups, within_taps=within_taps)
    if not entries:
        return None
    # A pair is off by at most 255·254 − 32767 < 2¹⁵, so float32 holds the sum of 512 of them.
    dtype = torch.float32 if int(torch.cat([e.out for e in entries]).bincount().max()) <= 512 else torch.float64
    begins, ends = padding[:rank], padding[rank:]
    pads = tuple(n for side in zip(begins[::-1], ends[::-1], strict=True) for n in side)
    extent = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]

    def excess(codes: Tensor) -> Tensor:
        raw = codes.to(torch.float32).transpose(0, 1)  # (channel, batch, *image): an entry is a row
        raw = F.pad(raw, pads, value=zero) if any(pads) else raw
        sizes = [(n - e) // s + 1 for n, e, s in zip(raw.shape[2:], extent, stride, strict=True)]
        total = raw.new_zeros((weight.shape[0], raw.shape[1] * prod(sizes)), dtype=dtype)
        peaks = raw.flatten(1).amax(1)
        sums = (raw + raw.roll(-1, 0)).flatten(1).amax(1)
        step = max(1, _BUDGET // total.shape[1])

        def at(tap: tuple[int, ...]) -> Tensor:
            ends = [i * d + (n - 1) * s + 1 for i, d, s, n in zip(tap, dilation, stride, sizes, strict=True)]
            starts = [i * d for i, d in zip(tap, dilation, strict=True)]
            return raw[(slice(None), slice(None), *map(slice, starts, ends, stride))].flatten(1)

        for group in entries:
            alive = group.reached(peaks, sums)
            if not len(alive.out):
                continue
            first = at(alive.taps[0])
            second = first if alive.taps[0] == alive.taps[1] else at(alive.taps[1])
            for part in torch.arange(len(alive.out)).split(step):
                e = alive.at(part)
                pair = first[e.channels[0]].mul_(e.weights[0][:, None]).add_(second[e.channels[1]].mul_(e.weights[1][:, None]))
                total.index_add_(0, e.out, pair.clamp(-32768, 32767).sub_(pair).to(dtype))
        return total.reshape(weight.shape[0], raw.shape[1], *sizes).transpose(0, 1)

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
