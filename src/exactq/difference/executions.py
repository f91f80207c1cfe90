"""The ways to execute a model: float graph, Q/DQ graph in PyTorch's floats, emulator, real runtime, somebody's module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exactq.errors import unknown
from exactq.graphs.graph import Graph
from exactq.graphs.programs import program
from exactq.quantized import Quantized
from exactq.targets.target import Runtime
from exactq.traces import Program, Trace, trace

Observe = Callable[[Sequence[Tensor]], Trace]
"""Inputs -> the tensors that an execution itself makes: codes as `layer/codes`, reals under the values' names."""


@dataclass(frozen=True, eq=False)
class Execution:
    """One way to compute a model. `graph` says on which grids, `program` with which arithmetic, step by step.

    `observe` is what really ran where that is not the program itself: a runtime, or somebody's module. The program then stands
    for it where other inputs are needed than it had, and whatever it does not explain is reported as unknown.
    """

    name: str
    graph: Graph
    program: Program
    observe: Observe | None = None

    def trace(self, inputs: Sequence[Tensor]) -> Trace:
        """What the execution makes of `inputs`, by name."""
        if self.observe is not None:
            return self.observe(inputs)
        with torch.no_grad():
            return trace(self.program, inputs)


WAYS = ("float", "qdq", "emulator", "runtime")
"""How a quantized model can be executed; `emulator` may name another instruction set behind an @."""


def execution(quantized: Quantized, way: str = "emulator", *, artifact: bytes | None = None) -> Execution:
    """The model in one of `WAYS`.

    `float` is before quantization, `qdq` on the plan's grids in PyTorch's float operators, `emulator` as the target's kernels
    compute it (`emulator@ISA`: on another machine), `runtime` as the real runtime does, from `artifact` if one is given.
    """
    kind, _, isa = way.partition("@")
    target = quantized.target
    if kind not in WAYS or (isa and kind != "emulator"):
        raise unknown("way to execute a model", way, [*WAYS, *(f"emulator@{i}" for i in target.isas)])
    if isa and isa not in target.isas:
        raise unknown(f"instruction set of {target.name}", isa, target.isas)
    if kind == "float":
        return Execution("float", quantized.float_graph, program(quantized.float_graph))
    if kind == "qdq":
        return Execution("qdq", quantized.graph, program(quantized.graph))
    if kind == "emulator":
        isa = isa or quantized.plan.isa
        return Execution(f"{target.name}@{isa}", quantized.graph, quantized.program(isa))
    loaded = target.open(quantized.artifact() if artifact is None else artifact)
    return observed(f"{target.name} {target.version}", quantized, loaded)


def observed(name: str, quantized: Quantized, runtime: Runtime) -> Execution:
    """A runtime, or somebody's module, that executes the model; this machine's emulator stands in for it."""
    emulator = quantized.program(quantized.target.detect_isa())
    return Execution(name, quantized.graph, emulator, _seen(emulator.outputs, runtime))


def prepared(name: str, quantized: Quantized, runtime: Runtime) -> Execution:
    """A module that computes in floats on the model's grids, as one does that is prepared for training."""
    steps = program(quantized.graph)
    return Execution(name, quantized.graph, steps, _seen(steps.outputs, runtime))


def _seen(outputs: tuple[str, ...], runtime: Runtime) -> Observe:
    def observe(inputs: Sequence[Tensor]) -> Trace:
        answers = dict(zip(outputs, runtime.run(inputs), strict=True))
        return answers | dict(runtime.trace(inputs))

    return observe
