"""Which of FBGEMM's convolution kernels runs, as far as its integers show it."""

from __future__ import annotations

from collections.abc import Sequence


def depthwise_fast(
    shape: Sequence[int], *, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> bool:
    """Whether a convolution runs in FBGEMM's depthwise kernels, which are AVX2 code and saturate pairs of taps everywhere.

    FbgemmConv.cc takeDepthWiseFastPath: groups of one channel, a multiple of 8 of them, each with one output or two; kernels of
    3, 5 or 7 pixels along each axis, square in the last two, padded to keep the image, without dilation.
    """
    out, per_group, *kernel = shape
    rank = len(kernel)
    return (
        per_group == 1
        and groups % 8 == 0
        and out in (groups, 2 * groups)
        and rank >= 2
        and kernel[-1] == kernel[-2]
        and all(k in (3, 5, 7) for k in kernel)
        and all(s in (1, 2) for s in stride)
        and all(d == 1 for d in dilation)
        and tuple(padding) == tuple((k - 1) // 2 for k in kernel) * 2
    )


def undecided(
    shape: Sequence[int],
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    isa: str,
) -> bool:
    """Whether what FBGEMM answers is not predicted: with AVX2 its groupwise kernels, where groups are left over.

    They take 8 output channels a turn, so 4 groups of 2 or 2 groups of 4, and what the last turn makes too much is written over
    the first channels of the next pixel (torch 2.13, measured under emulation). Kernels are of 3 pixels, padded by 1.
    """
    out, per_group, *kernel = shape
    groupwise = len(kernel) > 1 and per_group in (2, 4) and out == per_group * groups and {*kernel} == {3} and {*padding} == {1}
    groupwise = groupwise and {*dilation} == {1} and {*stride} in ({1}, {2})
    together = 8 // per_group
    return isa == "avx2" and groupwise and groups > together and groups % together != 0
