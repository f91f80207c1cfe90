"""The real runtime beside the emulator, tensor by tensor: the optimised session's integers against the predicted ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from exactq.errors import DataError
from exactq.graphs.qdq import CODES, REAL
from exactq.quantized import Quantized
from exactq.traces import Program, Step, Trace, walk


@dataclass(frozen=True)
class Compared:
    """One tensor over all inputs: how many elements, how many differ, and by how many codes at most."""

    name: str
    elements: int
    mismatches: int
    max_lsb: int


@dataclass(frozen=True)
class Verdict:
    """What `verify` found. Tensors are those of the optimised session; `outputs` those of the session without instruments.

    `unverified` names each tensor that was not compared, with the reason.
    """

    runtime: str
    version: str
    isa: str
    inputs: int
    tensors: tuple[Compared, ...]
    outputs: tuple[Compared, ...]
    unverified: tuple[str, ...]
    operators: dict[str, int] = field(default_factory=dict)

    @property
    def elements(self) -> int:
        """The number of integers compared, and of final output elements."""
        return sum(t.elements for t in (*self.tensors, *self.outputs))

    @property
    def mismatches(self) -> int:
        """How many of them differ."""
        return sum(t.mismatches for t in (*self.tensors, *self.outputs))

    @property
    def max_lsb(self) -> int:
        """The largest difference, in codes."""
        return max((t.max_lsb for t in (*self.tensors, *self.outputs)), default=0)

    @property
    def equal(self) -> bool:
        """Whether something was compared and nothing differs."""
        return self.elements > 0 and self.mismatches == 0

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain data."""
        return {
            "runtime": self.runtime,
            "version": self.version,
            "isa": self.isa,
            "inputs": self.inputs,
            "elements": self.elements,
            "mismatches": self.mismatches,
            "max_lsb": self.max_lsb,
            "tensors": [asdict(t) for t in self.tensors],
            "outputs": [asdict(t) for t in self.outputs],
            "unverified": list(self.unverified),
            "operators": self.operators,
        }


@dataclass
class _Count:
    elements: int = 0
    mismatches: int = 0
    max_lsb: int = 0

    def add(self, expected: Tensor, found: Tensor) -> None:
        self.elements += found.numel()
        differ = found != expected
        self.mismatches += int(differ.sum())
        if bool(differ.any()):
            self.max_lsb = max(self.max_lsb, int((found.double() - expected.double()).abs().max().ceil()))


def verify(
    quantized: Quantized,
    batches: Iterable[Sequence[Tensor]],
    *,
    artifact: bytes | None = None,
    inputs: int = 64,
    progress: Callable[[int], None] | None = None,
) -> Verdict:
    """The runtime's answers on at least `inputs` inputs (fewer if the batches end) beside the emulator's, bit for bit.

    `artifact` is the file to run; without one it is made anew. The emulator is that of this machine's instruction set, which
    may be another than the plan's. Where a value is made in a float island, the emulator goes on from the runtime's own codes
    there, so that everything behind is still checked. Raises `DataError` for no input at all.
    """
    target = quantized.target
    isa = target.detect_isa()
    program = target.lower(quantized.graph, isa)
    runtime = target.open(quantized.artifact() if artifact is None else artifact)
    tensors: dict[str, _Count] = {}
    outputs = {name: _Count() for name in program.outputs}
    unverified: dict[str, str] = {}
    done = 0
    for batch in batches:
        batch = tuple(x[: inputs - done] for x in batch)
        real = runtime.trace(batch)
        predicted, answers = _emulate(program, batch, real, unverified)
        for name, expected in predicted.items():
            tensors.setdefault(name, _Count()).add(expected, real[name])
        for name, answer, found in zip(program.outputs, answers, runtime.run(batch), strict=True):
            if _output_reason(program, name) is None:
                _add_output(outputs[name], answer, found, quantized, name)
        done += len(batch[0])
        if progress is not None:
            progress(len(batch[0]))
        if done >= inputs:
            break
    if not done:
        raise DataError("there is no input to verify with: give at least one batch")
    unverified |= {name.removesuffix(REAL): r for name in program.outputs if (r := _output_reason(program, name)) is not None}
    return Verdict(
        runtime=target.name,
        version=target.version,
        isa=isa,
        inputs=done,
        tensors=tuple(Compared(name.removesuffix(CODES), **asdict(count)) for name, count in tensors.items()),
        outputs=tuple(Compared(name.removesuffix(REAL), **asdict(count)) for name, count in outputs.items() if count.elements),
        unverified=tuple(f"{name}: {reason}" for name, reason in unverified.items()),
        operators=dict(runtime.operators),
    )


def _emulate(
    program: Program, batch: Sequence[Tensor], real: Trace, unverified: dict[str, str]
) -> tuple[Trace, tuple[Tensor, ...]]:
    """The predicted codes that the runtime shows too, and the outputs; what cannot be compared is noted."""
    predicted: Trace = {}

    def see(step: Step, value: Tensor) -> Tensor | None:
        if step.grid is None:
            return None
        if step.inexact is not None:
            unverified[step.name.removesuffix(CODES)] = step.inexact
            return real.get(step.name)
        if step.name not in real:
            unverified[step.name.removesuffix(CODES)] = "the optimised session does not hold this tensor"
        elif real[step.name].shape != value.shape:
            unverified[step.name.removesuffix(CODES)] = f"the optimised session holds it in the shape {tuple(real[step.name].shape)}"
        else:
            predicted[step.name] = value.to(step.grid.format.dtype)
        return None

    with torch.no_grad():
        answers = walk(program, batch, see)
    return predicted, answers


def _output_reason(program: Program, name: str) -> str | None:
    return next((s.inexact for s in program.steps if s.name == name), None)


def _add_output(count: _Count, expected: Tensor, found: Tensor, quantized: Quantized, name: str) -> None:
    """Compare final outputs as reals; their distance is counted in steps of their grid."""
    count.elements += found.numel()
    differ = found != expected
    count.mismatches += int(differ.sum())
    grid = quantized.grids.get(name.removesuffix(REAL))
    if bool(differ.any()):
        step = float(grid.scale) if grid is not None else 1.0
        count.max_lsb = max(count.max_lsb, round(float((found - expected).abs().max()) / step))
