"""Which of oneDNN's kernels runs, as far as its integers show it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def runs(depth: int) -> tuple[int, ...]:
    """The lengths of the runs in which a linear layer takes its inputs: two between 385 and 767, and pairs restart there.

    cpu/gemm/s8x8s32 get_k_padd: blocks of 384, but two equal ones where that would leave less than a block (measured).
    """
    first = (depth + 1) // 2
    return (first, depth - first) if 384 < depth < 768 else (depth,)


def reference(shape: Sequence[int], groups: int) -> bool:
    """Whether AVX2 runs the reference kernel: groups whose channels fill no blocks of 4, but for depthwise images."""
    vectors = depthwise(shape, groups) and len(shape) < 5
    return groups > 1 and not vectors and bool(shape[1] % 4 or shape[0] // groups % 4)


def undecided(weight: Tensor, groups: int, isa: str) -> bool:
    """Whether what oneDNN answers is not predicted: with AVX512-VNNI groups of one input and several outputs.

    In rows and images two kernels that round differently run for them, depending on the sizes of image and batch; and for
    images whose output is one pixel wide, of strides 1 and 2, all rows but the first are wrong by up to 255 codes (torch 2.13).
    """
    several = groups > 1 and weight.shape[1] == 1 and weight.shape[0] > groups
    return isa == "avx512vnni" and several and weight.ndim < 5


def depthwise(shape: Sequence[int], groups: int) -> bool:
    """Whether each of several groups has one input and one output channel."""
    return groups > 1 and shape[1] == 1 and shape[0] == groups
