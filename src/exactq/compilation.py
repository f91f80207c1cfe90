"""A program as one compiled function: the same integers in fewer passes over memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from exactq.traces import Program, walk

# A network has more kernels of one kind than dynamo recompiles by default; beyond its limit it would fall back to eager.
_RECOMPILE_LIMIT = 4096


def compiled(program: Program) -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]]:
    """`walk(program, …)` through torch.compile: the first call compiles (tens of seconds), later ones fuse elementwise steps.

    Needs a C++ compiler. Contraction of products and sums is off in Inductor's C++, so the bits are those of `walk`.
    """
    run = torch.compile(lambda *inputs: walk(program, inputs), dynamic=False)

    def call(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=_RECOMPILE_LIMIT):
            outputs: tuple[Tensor, ...] = run(*inputs)
        return outputs

    return call
