"""What a call becomes in an emulator: a kernel with its constants in place, its name and its anatomy; and a program of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from exactq.graphs.graph import Graph
from exactq.kernels import anatomy, aten, fbgemm, inductor, onednn, qnnpack
from exactq.kernels.accumulators import Kernel
from exactq.kernels.anatomy import Anatomy, max_pool
from exactq.targets.lowering import mark_inexact
from exactq.targets.pytorch.calls import Call, Largest, Moved, What
from exactq.traces import Program, Step


@dataclass(frozen=True, eq=False)
class Made:
    """A kernel with its constants in place, its name as `library.operator`, and its anatomy where it makes codes.

    `inexact` is the reason why its bits may not be the engine's.
    """

    run: Callable[..., Any]
    kernel: str
    anatomy: Anatomy | None = None
    inexact: str | None = None


LIBRARIES: Mapping[str, Any] = {
    "fbgemm": fbgemm,
    "inductor": inductor,
    "onednn": onednn,
    "qnnpack": qnnpack,
    "quantized": aten,
}
"""The name of a library in those of kernels -> its kernels and their anatomies. ATen's operators are called quantized ones."""

PYTORCHS = {"average_pool": "avg_pool", "adaptive_average_pool": "adaptive_avg_pool", "concat": "cat"}
"""What PyTorch calls an operator, where that is another word than the kernel's."""


TWO_KERNELS = "oneDNN has two kernels for groups of one input and several outputs, and which one runs is not known"
"""Why what oneDNN answers is not predicted (`onednn.undecided`)."""


def kernel(library: str, operator: str, *constants: Any, **options: Any) -> Made:
    """A library's kernel and its anatomy with these constants."""
    kernels = LIBRARIES[library]
    run, anatomy_of = getattr(kernels, operator), kernels.ANATOMIES[operator]
    name = f"{library}.{PYTORCHS.get(operator, operator)}"
    return Made(run(*constants, **options), name, anatomy_of(*constants, **options))


def largest(what: Largest) -> Made:
    """A max pool of codes, which every library does alike."""
    return Made(what.run, f"{what.op} on codes", max_pool(**what.places))


def moved(what: Moved, encode: Kernel) -> Made:
    """Codes that only move; what fills a border is `encode`d as the engine does it."""
    run, pad = what.run, what.pad
    if pad is not None:
        code = float(encode(torch.tensor([what.fill])))
        run = lambda codes: F.pad(codes, pad, value=code)  # noqa: E731
    return Made(run, f"{what.op} on codes", anatomy.Moved())


def broadcast(made: Made) -> Made:
    """The kernel on operands of one shape: the loader lays them out so before it calls the engine."""
    return replace(made, run=lambda a, b: made.run(*torch.broadcast_tensors(a, b)))


def assembled(graph: Graph, asked: Iterable[Call], make: Callable[[What], Made]) -> Program:
    """The emulator of `graph`: of each call what `make` makes of it, as far as the outputs need it."""
    steps = []
    for call in asked:
        made = make(call.what)
        inexact = call.inexact or made.inexact
        given = (call.name, made.run, call.inputs, made.kernel, call.grid, inexact, call.covers, made.anatomy)
        steps.append(Step(*given, shown=call.shown))
    live = Program(tuple(i.name for i in graph.inputs), tuple(steps), graph.outputs).towards(graph.outputs)
    return replace(live, steps=tuple(mark_inexact(live.steps)))
