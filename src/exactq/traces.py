"""Walk a program and keep what passes by: name -> tensor, in order.

A program is a list of steps, each a function of named values. A float graph, a Q/DQ graph and a graph lowered onto a
runtime's kernels are all programs, so one loop runs the float reference and every emulator.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from exactq.errors import DataError
from exactq.kernels.anatomy import Anatomy
from exactq.numerics.formats import Grid

Trace = dict[str, Tensor]
"""Value name -> tensor, in the order of computation."""


@dataclass(frozen=True)
class Step:
    """One value: `run(*inputs)` makes it. With a grid the value is codes (in any storage), without one it is reals.

    `covers` names the graph's operators that the step does. `kernel` says in a word what runs (`mlas.conv`, `aten.relu`);
    `inexact` is the reason why its bits may not be those of the runtime, or None where they are proven to be. `anatomy` says
    how one element of codes comes about, where a kernel makes them. `shown`: reals that the runtime's trace has, too.
    """

    name: str
    run: Callable[..., Tensor]
    inputs: tuple[str, ...]
    kernel: str
    grid: Grid | None = None
    inexact: str | None = None
    covers: tuple[str, ...] = ()
    anatomy: Anatomy | None = None
    shown: bool = False


@dataclass(frozen=True)
class Program:
    """Steps in an order in which each one's inputs are already there; `inputs` come from outside."""

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]

    def __post_init__(self) -> None:
        known = set(self.inputs)
        for step in self.steps:
            if missing := [name for name in step.inputs if name not in known]:
                raise DataError(f"step '{step.name}' reads {missing}, which nothing before it makes")
            if step.name in known:
                raise DataError(f"'{step.name}' is made twice")
            known.add(step.name)
        if missing := [name for name in self.outputs if name not in known]:
            raise DataError(f"the outputs {missing} are made by no step")

    @cached_property
    def last_use(self) -> Mapping[str, int]:
        """Value -> the index of the step after which nothing reads it; outputs are read at the very end."""
        uses = {name: index for index, step in enumerate(self.steps) for name in (step.name, *step.inputs)}
        return uses | dict.fromkeys(self.outputs, len(self.steps))

    def towards(self, outputs: Sequence[str]) -> Program:
        """The part of the program that makes these values, as a program whose outputs they are; other steps are gone."""
        needed, kept = set(outputs), []
        for step in reversed(self.steps):
            if step.name in needed:
                needed.update(step.inputs)
                kept.append(step)
        return Program(self.inputs, tuple(kept[::-1]), tuple(outputs))


def walk(
    program: Program, inputs: Sequence[Tensor], see: Callable[[Step, Tensor], Tensor | None] | None = None
) -> tuple[Tensor, ...]:
    """The outputs of `program` on `inputs`; `see(step, value)` is called for each step as it is made.

    What `see` returns, if anything, takes the value's place. Each value is dropped after its last use, so memory is that of
    the widest moment. Raises `DataError` for a wrong number of inputs.
    """
    if len(inputs) != len(program.inputs):
        raise DataError(f"{len(inputs)} inputs given, the program takes {len(program.inputs)}: {', '.join(program.inputs)}")
    values = dict(zip(program.inputs, inputs, strict=True))
    last = program.last_use
    for index, step in enumerate(program.steps):
        value = step.run(*(values[name] for name in step.inputs))
        if see is not None and (instead := see(step, value)) is not None:
            value = instead
        values[step.name] = value
        for name in {step.name, *step.inputs}:
            if last[name] == index:
                del values[name]
    return tuple(values[name] for name in program.outputs)


def trace(program: Program, inputs: Sequence[Tensor], keep: Collection[str] | None = None) -> Trace:
    """The values of `program` on `inputs` by name, in order; codes come in their format's dtype. `keep` None keeps all.

    What is not a tensor (a batch size, the tuple of an operator with several results) passes by and is not kept.
    """
    kept: Trace = {}

    def see(step: Step, value: Tensor) -> None:
        if isinstance(value, Tensor) and (keep is None or step.name in keep):
            kept[step.name] = value.clone() if step.grid is None else value.to(step.grid.format.dtype)

    walk(program, inputs, see)
    return kept
