"""The real runtime beside the emulator, tensor by tensor: the optimised session's integers against the predicted ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from exactq.errors import DataError, TargetError
from exactq.graphs.qdq import CODES, REAL
from exactq.quantized import Quantized
from exactq.targets.target import Runtime
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

    def add(self, expected: Tensor, found: Tensor, step: float = 1.0) -> None:
        """Count a tensor; `step` is what one code is worth in it. NaN equals NaN; of another shape nothing is equal."""
        self.elements += found.numel()
        if found.shape != expected.shape:
            self.mismatches += found.numel()
            return
        wanted, got = expected.double(), found.double()
        differ = (got != wanted) & ~(got.isnan() & wanted.isnan())
        self.mismatches += int(differ.sum())
        if bool(differ.any()):
            codes = (got - wanted)[differ].abs().div(step).nan_to_num(nan=1.0, posinf=1.0).max()
            self.max_lsb = max(self.max_lsb, 1, round(float(codes)))


def verify(
    quantized: Quantized,
    batches: Iterable[Sequence[Tensor]],
    *,
    runtime: Runtime | None = None,
    inputs: int = 64,
    progress: Callable[[int], None] | None = None,
) -> Verdict:
    """The runtime's answers on at least `inputs` inputs (fewer if the batches end) beside the emulator's, bit for bit.

    `runtime` is what answers: a file opened by the target, or a module that others quantized; without one it is the target's
    own, on the file made anew. The emulator is that of this machine's instruction set, which
    may be another than the plan's. Where a value is made in a float island, the emulator goes on from the runtime's own codes
    there, so that everything behind is still checked. Raises `DataError` for no input at all and `TargetError` for a file that
    the runtime cannot load or that is not of this model.
    """
    target = quantized.target
    isa = target.detect_isa()
    program = target.lower(quantized.graph, isa)
    real = target.open(quantized.artifact()) if runtime is None else runtime
    grids = quantized.grids
    free = all(i.batch for i in quantized.float_graph.inputs)
    tensors: dict[str, _Count] = {}
    outputs: dict[str, _Count] = {}
    unverified: dict[str, str] = {}
    done = 0
    for batch in batches:
        # A model of fixed shapes takes its batches whole.
        batch = tuple(x[: inputs - done] for x in batch) if free else tuple(batch)
        seen = _emulate(program, batch, real.trace(batch))
        answers = real.run(batch)
        if len(answers) != len(program.outputs):
            raise TargetError(
                f"the file has {len(answers)} outputs, the model {len(program.outputs)}: is it another model's file?"
            )
        unverified |= {name.removesuffix(CODES).removesuffix(REAL): reason for name, reason in seen.reasons.items()}
        for name, (expected, found) in seen.compared.items():
            tensors.setdefault(name.removesuffix(CODES), _Count()).add(expected, found)
        for full, expected, found in zip(program.outputs, seen.outputs, answers, strict=True):
            name = full.removesuffix(REAL)
            if full not in seen.reasons and name + CODES not in seen.reasons:
                step = float(grids[name].scale) if name in grids else 1.0
                outputs.setdefault(name, _Count()).add(expected, found, step)
        done += len(batch[0])
        if progress is not None:
            progress(len(batch[0]))
        if done >= inputs:
            break
    if not done:
        raise DataError("there is no input to verify with: give at least one batch")
    return Verdict(
        runtime=target.name,
        version=target.version,
        isa=isa,
        inputs=done,
        tensors=tuple(Compared(name, **asdict(count)) for name, count in tensors.items()),
        outputs=tuple(Compared(name, **asdict(count)) for name, count in outputs.items()),
        unverified=tuple(f"{name}: {reason}" for name, reason in unverified.items()),
        operators=dict(real.operators),
    )


@dataclass(frozen=True)
class _Seen:
    """One batch: the codes that both have, the emulator's outputs, and for each value that cannot be compared the reason."""

    compared: Mapping[str, tuple[Tensor, Tensor]]
    outputs: tuple[Tensor, ...]
    reasons: Mapping[str, str]


def _emulate(program: Program, batch: Sequence[Tensor], real: Trace) -> _Seen:
    """The emulator beside one trace of the runtime; where its bits are not known it goes on from the runtime's codes.

    What follows from a value whose bits are not known and which the runtime does not show is not compared either.
    """
    compared: dict[str, tuple[Tensor, Tensor]] = {}
    reasons: dict[str, str] = {}
    lost: dict[str, str] = {}

    def see(step: Step, value: Tensor) -> Tensor | None:
        told = step.grid is not None or step.shown
        unknown = next((lost[name] for name in step.inputs if name in lost), None)
        reason = step.inexact or (None if unknown is None else f"it is made from `{unknown}`, whose bits are not known")
        if reason is not None:
            if told and step.name in real:
                reasons[step.name] = reason
                return real[step.name]
            lost[step.name] = step.name.removesuffix(CODES).removesuffix(REAL) if unknown is None else unknown
            if told or step.name in program.outputs:
                reasons[step.name] = reason
        elif told and step.name not in real:
            reasons[step.name] = "no tensor of the optimised session is known to hold it"
        elif told:
            compared[step.name] = value if step.grid is None else value.to(step.grid.format.dtype), real[step.name]
        return None

    with torch.no_grad():
        answers = walk(program, batch, see)
    return _Seen(compared, answers, reasons)
