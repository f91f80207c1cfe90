"""What a target is: a record of functions. Nothing inherits; shared arithmetic lives below, in `kernels` and `numerics`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from exactq.graphs.graph import Graph
from exactq.plans.rules import Ability
from exactq.traces import Program, Trace


@dataclass(frozen=True)
class Runtime:
    """One model file, loaded by the real runtime.

    `run(inputs)` answers as a user's default session does. `trace(inputs)` gives every integer tensor of the optimised
    session by the name that the emulator uses. `operators` counts what the optimised session runs.
    """

    run: Callable[[Sequence[Tensor]], tuple[Tensor, ...]]
    trace: Callable[[Sequence[Tensor]], Trace]
    operators: Mapping[str, int]


@dataclass(frozen=True)
class Target:
    """A runtime: what it can do, how its kernels compute, how its files are written, and the runtime itself.

    `open(model)` instruments a file for `trace`; `timed(model, threads)` only runs it. `isas` are the instruction sets whose
    integers were measured. `alone` is a Python file that loads the runtime and numpy and nothing else of weight, so that a
    process can tell a model's memory from everybody else's: its `start()` makes the runtime ready, its `load(path, threads)`
    gives a function of the model's inputs as arrays. `reads` gives the Q/DQ graph of a file that `emit` wrote, and raises
    `TargetError` for any other; None where a file's grids are not read back.
    """

    name: str
    suffix: str
    isas: tuple[str, ...]
    version: str
    ability: Callable[[str], Ability]
    lower: Callable[[Graph, str], Program]
    emit: Callable[[Graph], bytes]
    detect_isa: Callable[[], str]
    open: Callable[[bytes], Runtime]
    timed: Callable[[bytes, int], Callable[[Sequence[Tensor]], tuple[Tensor, ...]]]
    alone: Path
    reads: Callable[[bytes], Graph] | None = None
