"""How far a quantized model is from its float model: signal to noise of each layer and of the outputs, agreement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from exactq.graphs.programs import program
from exactq.graphs.qdq import CODES
from exactq.numerics.measures import decibels
from exactq.quantized import Quantized
from exactq.traces import Step, trace, walk


@dataclass
class Ratio:
    """A signal-to-noise ratio gathered over batches: squared signal and squared error, in float64."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: Tensor, test: Tensor) -> None:
        """Add a batch of the float model's values and the quantized model's."""
        wanted = reference.double()
        self.signal += float(wanted.square().sum())
        self.noise += float((test.double() - wanted).square().sum())

    @property
    def decibels(self) -> float:
        """10·log10(signal / noise): ∞ without noise, −∞ without signal."""
        return decibels(self.signal, self.noise)


@dataclass
class Outputs:
    """The outputs of two models beside each other: signal to noise, and how often the largest score is the same one."""

    ratio: Ratio = field(default_factory=Ratio)
    same: int = 0
    samples: int = 0
    error: float = 0.0
    elements: int = 0

    def add(self, reference: Sequence[Tensor], test: Sequence[Tensor]) -> None:
        """Add the outputs of both models for one batch."""
        for wanted, found in zip(reference, test, strict=True):
            self.ratio.add(wanted, found)
            self.error += float((found.double() - wanted.double()).abs().sum())
            self.elements += wanted.numel()
        first, other = reference[0], test[0]
        if first.ndim >= 2 and first.shape[1] > 1:
            self.same += int((first.argmax(1) == other.argmax(1)).sum())
            self.samples += first.argmax(1).numel()

    @property
    def agreement(self) -> float | None:
        """The share of samples whose largest score is the same class; None for outputs that are no scores."""
        return self.same / self.samples if self.samples else None

    @property
    def mean_error(self) -> float:
        """The mean absolute difference of the outputs."""
        return self.error / self.elements if self.elements else 0.0


def layer_sqnr(quantized: Quantized, batches: Iterable[Sequence[Tensor]]) -> dict[str, float]:
    """Value name -> signal-to-noise ratio in dB between the float model's value and what the codes stand for, in order.

    Errors of earlier layers are included: this is the drift along the network, not each layer by itself.
    """
    emulator = quantized.program()
    reference = program(quantized.float_graph)
    ratios: dict[str, Ratio] = {}
    with torch.no_grad():
        for batch in batches:
            named = dict(zip(reference.inputs, batch, strict=True))
            wanted = named | trace(reference, batch, {s.name.removesuffix(CODES) for s in emulator.steps})

            def see(step: Step, codes: Tensor, wanted: dict[str, Tensor] = wanted) -> None:
                name = step.name.removesuffix(CODES)
                if step.grid is not None and name in wanted:
                    ratios.setdefault(name, Ratio()).add(wanted[name], step.grid.decode(codes))

            walk(emulator, batch, see)
    return {name: ratio.decibels for name, ratio in ratios.items()}
