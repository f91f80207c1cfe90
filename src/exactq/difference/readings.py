"""What an execution made, or would make, of one value, and how far two such are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from exactq.difference.ideal import Ideal
from exactq.difference.sides import Side, decoded, encoded
from exactq.graphs.qdq import REAL
from exactq.numerics.formats import Grid
from exactq.traces import Program, Trace, walk


def entries(both: Ideal, batch: Sequence[Tensor]) -> dict[str, Tensor]:
    """The inputs by name, reals in float64."""
    names = (spec.name for spec in both.a.graph.inputs)
    return {name: x.double() if x.is_floating_point() else x for name, x in zip(names, batch, strict=True)}


def reals(s: Side, key: str, seen: Trace) -> Tensor | None:
    """What an execution made of a key, float64 reals: decoded codes, or the value where it keeps it real."""
    codes, grid = seen.get(s.step(key)), s.grids.get(key)
    if codes is not None and grid is not None:
        return decoded(codes, grid)
    value = seen.get(s.shown(key))
    if value is None:
        value = seen.get(key + REAL)
    if value is None:
        return None
    exact = value.double()
    if grid is None:
        return exact
    # A module shows the reals of its codes as float32 products; what lies beside the grid stays where it is.
    nearest = torch.round(exact / grid.scale.double()) * grid.scale.double()
    return torch.where((exact - nearest).abs() <= nearest.abs() * 2.0**-23, nearest, exact)


def step_of(both: Ideal, key: str) -> float | None:
    """What one code is worth where two values are compared: the larger step; None for reals on both sides."""
    steps = [float(s.grids[key].scale) for s in (both.a, both.b) if key in s.grids]
    return max(steps, default=None)


def compared(both: Ideal, key: str, value: Tensor) -> Tensor:
    """The reals that are compared: of codes, the nearest ones beside a float execution, and float32 where both are real.

    Grids that only the rounding of their scale tells apart are compared by their codes.
    """
    known = [s.grids[key] for s in (both.a, both.b) if key in s.grids]
    if not known:
        return value.float().double()
    if len(known) == 1:
        return decoded(encoded(value, known[0]), known[0])
    if not _nearly_same(*known):
        return value
    steps = value / known[0].scale.double()
    near = torch.round(steps)  # what lies beside both grids stays where it is
    return torch.where((steps - near).abs() < 2.0**-9, near * known[0].scale.double(), value)


def _nearly_same(first: Grid, second: Grid) -> bool:
    """Whether two grids differ, but no code of one is as far as a thousandth of a step from the same code of the other."""
    apart = abs(float(first.scale) / float(second.scale) - 1) * 2**first.format.bits
    return int(first.zero) == int(second.zero) and first.format.signed == second.format.signed and 0 < apart < 2.0**-10


def apart(first: Tensor, second: Tensor, step: float | None) -> Tensor:
    """How many steps two tensors are apart: 0 where equal, a hundredth at least where not; 1 for reals that differ."""
    same = (first == second) | (first.isnan() & second.isnan())
    if step is None:
        return (~same).double()
    apart = ((first - second).abs() / step).nan_to_num(nan=1.0, posinf=1.0)
    return torch.where(same, 0.0, (apart * 100).round().clamp(min=1) / 100)


def made_from(s: Side, key: str, batch: tuple[Tensor, ...], given: Mapping[str, Tensor]) -> Tensor:
    """What a side's own program makes of a key from the values that are given, encoded on its own grids; float64 reals."""
    program, preset = s.execution.program, dict[str, Tensor]()
    for name, value in given.items():
        if name not in s.grids:
            preset[name] = value.float()
        elif name != key:
            preset[s.step(name)] = encoded(value, s.grids[name]).to(s.grids[name].format.dtype)
    inputs = tuple(preset.get(name, x) for name, x in zip(program.inputs, batch, strict=True))
    if key in s.grids:
        return decoded(run_from(program, inputs, preset, s.step(key)), s.grids[key])
    name = s.values.get(key, key.partition("@")[0])
    if name in program.inputs:
        return inputs[program.inputs.index(name)].double()
    made = {step.name for step in program.steps}
    return run_from(program, inputs, preset, name if name in made else key + REAL).double()


def run_from(program: Program, inputs: Sequence[Tensor], preset: Mapping[str, Tensor], name: str) -> Tensor:
    """The value of that name when those that are `preset` are what they are, whatever would make them."""
    steps = tuple(
        replace(step, run=partial(_same, preset[step.name]), inputs=()) if step.name in preset else step
        for step in program.steps
    )
    (value,) = walk(Program(program.inputs, steps, program.outputs).towards((name,)), inputs)
    return value


def _same(value: Tensor) -> Tensor:
    return value
