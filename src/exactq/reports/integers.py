"""One integer of each layer in full, and how each layer's biases are held: what `explain` says, as facts of a report."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from exactq.explanation import Biases, Explanation, explain_biases, explain_layers
from exactq.quantized import Quantized
from exactq.reports.facts import BiasFacts, IntegerFacts

MOST, TERMS = 64, 3
"""How many layers have an integer explained, those farthest from the float model; and how many terms of its sum are shown."""


def explained_integers(quantized: Quantized, inputs: Sequence[Tensor], *, isa: str | None = None) -> list[IntegerFacts]:
    """Of each layer with products the integer farthest from the float model's value on one batch, in order; at most `MOST`.

    Both models run once and keep what the layers read, so a batch of one is enough.
    """
    with torch.no_grad():
        found = list(explain_layers(quantized, inputs, isa=isa, terms=TERMS))
    far = sorted(range(len(found)), key=lambda i: -abs(found[i].error_lsb or 0.0))[:MOST]
    return [_integer(found[i]) for i in sorted(far)]


def _integer(found: Explanation) -> IntegerFacts:
    return IntegerFacts(
        node=found.made,
        index=found.index,
        code=found.code,
        real=found.real,
        reference=found.reference,
        error_lsb=found.error_lsb,
        text=str(found),
    )


def bias_table(quantized: Quantized) -> tuple[BiasFacts, ...]:
    """How the biases of each layer are held, in order: the one that loses most as int32, and the least room in int32."""
    found: Biases = explain_biases(quantized)
    lines = []
    for layer in found.layers:
        worst, tightest = layer.worst, layer.tightest
        lines.append(
            BiasFacts(
                node=layer.node,
                held=layer.held,
                channels=len(layer.channels),
                channel=worst.channel,
                bias=worst.bias,
                code=worst.code,
                error_lsb=worst.error_lsb,
                headroom_bits=tightest.headroom,
                overflow=sum(channel.share >= 1 for channel in layer.channels),
                zero_weights=len(layer.zero_weights),
            )
        )
    return tuple(lines)
