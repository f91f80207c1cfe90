"""One element of a quantized model: what its kernel reads and does, recomputed in plain numbers down to the emulator's code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exactq.errors import DataError, UsageError, unknown
from exactq.explanation import wording
from exactq.explanation.products import product_lines
from exactq.graphs.graph import Graph, arguments
from exactq.graphs.programs import example_inputs, is_compute, program
from exactq.graphs.qdq import CODES
from exactq.kernels.anatomy import Element, Function, Line, Lines, Moved, Place, Products, Read, place_of
from exactq.numerics.formats import Grid
from exactq.numerics.scalars import Scalar, scalar, shown
from exactq.plans.plan import Dynamic, Float, Fused
from exactq.quantized import Quantized
from exactq.traces import Program, Step, trace

SHOWN = 8
"""How many terms of a sum are shown, the largest."""


@dataclass(frozen=True)
class Explanation:
    """How the code of `node` at `index` comes about: `steps` end in `code`, which stands for `real`.

    `made` is the value whose codes are explained: `node` itself, or the one into whose kernel it is fused. `reference` is the
    float model's value there and `error_lsb` how many steps of the grid the real is above it; None where that is not finite.
    """

    node: str
    index: Place
    made: str
    kernel: str
    target: str
    isa: str
    steps: Lines
    code: int
    real: float
    reference: float | None
    error_lsb: float | None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return wording.text(self)

    def to_json(self) -> dict[str, Any]:
        """The explanation as plain data; a number that is not finite is null."""
        return {
            "node": self.node,
            "index": list(self.index),
            "made": self.made,
            "kernel": self.kernel,
            "target": f"{self.target}@{self.isa}",
            "steps": [wording.line_json(line) for line in self.steps],
            "code": self.code,
            "real": wording.plain(self.real),
            "float": wording.plain(self.reference),
            "error_lsb": wording.plain(self.error_lsb),
            "notes": list(self.notes),
        }


def explain(
    quantized: Quantized,
    node: str,
    at: Sequence[int],
    inputs: Sequence[Tensor] | None = None,
    *,
    isa: str | None = None,
    terms: int = SHOWN,
) -> Explanation:
    """How the code of the value `node` at the index `at` comes about on `inputs`, one batch; of long sums the `terms` largest.

    Without inputs it is one of normally distributed numbers, which the notes say. `isa` is the plan's, or another measured one.
    Raises `UsageError` for a name, index or instruction set that does not exist and for a value that stays float, with the
    reason, `DataError` for inputs that the model does not take, and `AssertionError`, a bug, if the code is not the emulator's.
    """
    if isa is not None and isa not in quantized.target.isas:
        raise unknown(f"instruction set of {quantized.target.name}", isa, quantized.target.isas)
    if terms < 1:
        raise UsageError(f"{terms} terms cannot be shown; ask for one at least, {SHOWN} are the default")
    emulator = quantized.program(isa)
    step, notes = _found(quantized, emulator, node)
    if inputs is None:
        inputs = example_inputs(quantized.float_graph)
        notes = (*notes, "no inputs were given: this is one of normally distributed numbers, seed 0")
    _check(quantized.float_graph, inputs)
    part = emulator.towards((step.name, *step.inputs))
    values = _values(part, inputs, {step.name, *step.inputs})
    _check_index(node, tuple(at), tuple(values[step.name].shape))
    float_values = _float_values(quantized.float_graph, inputs, (_value(step),))
    if (islands := [s for s in part.steps if s.inexact and s.name != step.name]) and not step.inexact:
        notes = (*notes, f"codes before it come from a float island: {islands[0].inexact}")
    made = _Made(quantized, emulator, isa or quantized.plan.isa, values, float_values, terms)
    return _explained(made, step, node, tuple(int(i) for i in at), notes)


Choose = Callable[[Step, Tensor, Tensor], Iterable[Place]]
"""Which elements of a step are explained, by its codes and the float model's values."""


def explain_many(
    quantized: Quantized, inputs: Sequence[Tensor], choose: Choose, *, isa: str | None = None, terms: int = SHOWN
) -> Iterator[Explanation]:
    """The elements of each value on `inputs` that `choose` names, in the order of computation; both models run once."""
    emulator = quantized.program(isa)
    _check(quantized.float_graph, inputs)
    steps = [step for step in emulator.steps if step.anatomy is not None]
    values = _values(emulator, inputs, {name for step in steps for name in (step.name, *step.inputs)})
    float_values = _float_values(quantized.float_graph, inputs, tuple(dict.fromkeys(map(_value, steps))))
    made = _Made(quantized, emulator, isa or quantized.plan.isa, values, float_values, terms)
    for step in steps:
        for at in choose(step, values[step.name], float_values[_value(step)]):
            yield _explained(made, step, step.name.removesuffix(CODES), at, _covered(step))


def explain_layers(
    quantized: Quantized, inputs: Sequence[Tensor], *, isa: str | None = None, terms: int = SHOWN
) -> Iterator[Explanation]:
    """One explained integer of each layer with products: the one farthest from the float model's value, in order."""
    return explain_many(quantized, inputs, _farthest, isa=isa, terms=terms)


def _farthest(step: Step, codes: Tensor, reference: Tensor) -> Iterable[Place]:
    if not isinstance(step.anatomy, Products) or step.grid is None:
        return ()
    error = (step.grid.decode(codes).double() - reference.double()).abs().nan_to_num(nan=0.0)
    return (place_of(int(error.argmax()), tuple(error.shape)),)


@dataclass(frozen=True)
class _Made:
    """The model, its emulator, and the values of both on the inputs."""

    quantized: Quantized
    emulator: Program
    isa: str
    values: Mapping[str, Tensor]
    float_values: Mapping[str, Tensor]
    terms: int


def _found(quantized: Quantized, emulator: Program, node: str) -> tuple[Step, tuple[str, ...]]:
    """The step that makes the codes of that value, or of that into which it is fused; `UsageError` where there is none."""
    steps = {step.name.removesuffix(CODES): step for step in emulator.steps if step.anatomy is not None}
    if node in steps:
        return steps[node], _covered(steps[node])
    slots, constants = quantized.plan.slots, quantized.float_graph.constants
    if node not in slots:
        raise unknown("value", node, {*steps, *(name for name in slots if name not in constants)})
    if node in constants:
        readers = [quantized.float_graph.name(user) for user in quantized.float_graph.node(node).users if user.op != "output"]
        raise UsageError(f"`{node}` is a constant: explain what reads it ({', '.join(readers)}), or biases with --bias")
    into, slot = node, slots[node]
    while isinstance(slot, Fused):
        into, slot = slot.into, slots[slot.into]
    if (dynamic := _dynamic(quantized, emulator, node)) is not None:
        raise UsageError(dynamic)
    if isinstance(slot, Float):
        raise UsageError(f"`{node}` stays float, so there is no integer to explain: {slot.reason}")
    if into not in steps:
        raise UsageError(f"`{node}` has a grid, but no kernel makes codes of it: nothing reads them as such")
    step = steps[into]
    if node not in step.covers:
        raise UsageError(f"`{node}` has no codes: `{into}` behind it has; {step.inexact or 'it runs in float'}")
    note = f"`{node}` has no codes of its own: its int32 is the accumulator of the kernel that makes `{into}`"
    return step, (note, *_covered(step))


def _dynamic(quantized: Quantized, emulator: Program, node: str) -> str | None:
    """Why a value that a dynamic layer makes is not explained; None for any other."""
    for step in emulator.steps:
        if node in step.covers and step.grid is None:
            layer = next(e for e, slot in quantized.plan.edges.items() if isinstance(slot, Dynamic) and e.user in step.covers)
            return (
                f"`{node}` is reals that {step.kernel} makes of `{layer.value}`, on a grid that it lays over each batch: it "
                "ends in no integer, and explanations of dynamic layers are not covered; `exactq verify` compares its reals"
            )
    return None


def _covered(step: Step) -> tuple[str, ...]:
    notes = []
    if len(step.covers) > 1 and step.grid is not None:
        lo, hi = (step.grid.decode(torch.tensor([end])).item() for end in (step.grid.format.lo, step.grid.format.hi))
        names = " and ".join(f"`{name}`" for name in step.covers)
        joined = isinstance(step.anatomy, Products) and step.anatomy.added is not None
        end = f": the activation is the grid's end, reals are {lo:.6g}..{hi:.6g}" if len(step.covers) > 1 + joined else ""
        notes.append(f"{names} are one kernel{end}")
    if step.inexact is not None:
        notes.append(f"not proven to be the runtime's: {step.inexact}")
    return tuple(notes)


def _check(graph: Graph, inputs: Sequence[Tensor]) -> None:
    if len(inputs) != len(graph.inputs):
        names = ", ".join(i.name for i in graph.inputs)
        raise DataError(f"{len(inputs)} inputs given, the model takes {len(graph.inputs)}: {names}")
    for spec, x in zip(graph.inputs, inputs, strict=True):
        known = 1 if spec.batch else 0
        if x.dtype != spec.dtype or x.ndim != len(spec.shape) or tuple(x.shape[known:]) != tuple(spec.shape[known:]):
            wanted = f"{('n', *spec.shape[1:]) if spec.batch else spec.shape} of {spec.dtype}".replace("'", "")
            raise DataError(f"input `{spec.name}` is {wanted}, not {tuple(x.shape)} of {x.dtype}")
        if not len(x):
            raise DataError(f"input `{spec.name}` has no sample: give one at least")


def _check_index(node: str, at: Place, shape: tuple[int, ...]) -> None:
    told = ",".join(map(str, at))
    if len(at) != len(shape):
        raise UsageError(f"the index {told} has {len(at)} numbers, `{node}` has {len(shape)} axes: its shape is {shape}")
    for axis, (i, size) in enumerate(zip(at, shape, strict=True)):
        if not 0 <= i < size:
            raise UsageError(
                f"the index {told} is outside of `{node}`, whose shape is {shape}: axis {axis} takes 0..{size - 1}"
            )


def _values(part: Program, inputs: Sequence[Tensor], keep: set[str]) -> dict[str, Tensor]:
    with torch.no_grad():
        return dict(zip(part.inputs, inputs, strict=True)) | trace(part, inputs, keep)


def _value(step: Step) -> str:
    """The value of the float model that the step's codes stand for; `value@reader` is `value` on a grid of its own."""
    return step.name.removesuffix(CODES).partition("@")[0]


def _float_values(graph: Graph, inputs: Sequence[Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    return _values(program(graph).towards(names), inputs, set(names))


def _explained(made: _Made, step: Step, node: str, at: Place, notes: tuple[str, ...]) -> Explanation:
    grid, operands = step.grid, [made.values[name] for name in step.inputs]
    assert grid is not None
    with np.errstate(all="ignore"):  # infinite reals and quotients have their codes, too
        lines = _lines(made, step, operands, at)
        code = int(lines[-1].value)
        real = grid.decode(made.values[step.name][at].reshape(())).item()
        reference, error, beside = _beside(made.float_values[_value(step)], at, real, grid)
    if code != int(made.values[step.name][at]):
        raise AssertionError(
            f"the explanation of `{step.name}` at {at} comes to {code}, the emulator to {int(made.values[step.name][at])}"
        )
    scale, zero = float(grid.scale), int(grid.zero)
    told = f"fl(({code} − {zero}) · {shown(np.float32(scale))}) = {shown(np.float32(real))}"
    return Explanation(
        node=node,
        index=at,
        made=step.name.removesuffix(CODES),
        kernel=step.kernel,
        target=made.quantized.target.name,
        isa=made.isa,
        steps=(*lines, Line("real", told, np.float32(real), {"scale": np.float32(scale), "zero": zero}), *beside),
        code=code,
        real=real,
        reference=reference,
        error_lsb=error,
        notes=notes,
    )


def _lines(made: _Made, step: Step, operands: Sequence[Tensor], at: Place) -> Lines:
    """The lines down to the code."""
    shapes = [tuple(x.shape) for x in operands]
    names = [name.removesuffix(CODES) for name in step.inputs]
    match step.anatomy:
        case Products() as anatomy:
            read = (anatomy.x,) if anatomy.weight is not None else (anatomy.x, anatomy.w)
            opening = [_operand(name, grid) for name, grid in zip(names, read, strict=False)]
            if anatomy.added is not None:
                opening.append(_element(names[-1], Read(len(operands) - 1, at), int(operands[-1][at]), anatomy.added))
            assert step.grid is not None
            bias = _float_bias(made.quantized.float_graph, step, at, anatomy.channel)
            return (*opening, *product_lines(anatomy, at, operands, bias, float(step.grid.scale), made.terms))
        case Function() as anatomy:
            reads = anatomy.reads(at, shapes)
            values = [_read(operands, read, anatomy.outside) for read in reads]
            grids = {s.name: s.grid for s in made.emulator.steps}
            opening = [
                _element(names[read.operand], read, value, grids.get(step.inputs[read.operand]))
                for read, value in zip(reads, values, strict=True)
            ]
            if len(reads) > len(operands):
                opening = [_operand(name, grids[full]) for name, full in zip(names, step.inputs, strict=True)]
            found = anatomy.plain(Element(at, reads, values, shapes))
            return (*opening, *(replace(line, rows=wording.largest(line.rows, made.terms)) for line in found))
        case Moved():
            return (_moved(step, names[0], operands[0], at),)
    raise AssertionError(f"`{step.name}` has no anatomy")


def _operand(name: str, grid: Grid | None) -> Line:
    assert grid is not None
    scale, zero = scalar(grid.scale), int(grid.zero)
    text = f"`{name}`: {grid.format.name} codes, real = {shown(scale)} · (code − {zero})"
    return Line("input", text, scale, {"of": name, "scale": scale, "zero": zero})


def _element(name: str, read: Read, value: Scalar, grid: Grid | None) -> Line:
    place = ",".join(map(str, read.place or ()))
    values: dict[str, Any] = {"of": name, "at": read.place}
    if grid is None:
        return Line("input", f"`{name}`[{place}] is the real {shown(value)}", value, values)
    scale, zero = scalar(grid.scale), int(grid.zero)
    text = f"`{name}`[{place}] is code {value}, real {shown(scale)} · ({value} − {zero})"
    return Line("input", text, value, {**values, "scale": scale, "zero": zero})


def _read(operands: Sequence[Tensor], read: Read, outside: Scalar) -> Scalar:
    if read.place is None:
        return outside
    found = operands[read.operand][read.place]
    return np.float32(found.item()) if found.is_floating_point() else int(found)


def _moved(step: Step, name: str, operand: Tensor, at: Place) -> Line:
    """Where a moved code came from: the step itself moves positions instead of codes, far above what fills a border."""
    above = 2**32
    positions = torch.arange(operand.numel()).reshape(operand.shape) + above
    found = int(step.run(positions)[at]) - above
    if found < 0:
        code = found + above
        return Line("border", f"the constant {code} of the border: no element of `{name}`", code, {"of": name, "at": None})
    place = place_of(found, tuple(operand.shape))
    code = int(operand[place])
    text = f"`{name}`[{','.join(map(str, place))}] is code {code}, and is only moved: the grid stays"
    return Line("move", text, code, {"of": name, "at": place})


def _float_bias(graph: Graph, step: Step, at: Place, channel: int) -> float | None:
    """The float model's bias in that element's channel."""
    found = float_bias(graph, step)
    return None if found is None else float(found.flatten()[at[channel]])


def float_bias(graph: Graph, step: Step) -> Tensor | None:
    """The float model's bias of the layer that a step does."""
    for name in step.covers:
        node = graph.node(name)
        if is_compute(node) and (bias := arguments(node).get("bias")) is not None:
            return graph.constants.get(graph.name(bias))
    return None


def _beside(reference: Tensor, at: Place, real: float, grid: Grid) -> tuple[float | None, float | None, Lines]:
    """The float model's value at the same place, how many steps the real is above it, and the line that says so."""
    value = float(reference[at])
    if not np.isfinite(value) or not np.isfinite(real):
        return None, None, (Line("float model", f"the float model has {value} here", np.float32(value)),)
    steps = (real - value) / float(grid.scale)
    nearest = int(grid.encode(reference[at].reshape(())))
    text = f"the float model has {shown(np.float32(value))}, whose code is {nearest}: the real is {steps:+.3f} LSB from it"
    return value, steps, (Line("float model", text, np.float32(value), {"code": nearest, "error_lsb": steps}),)
