"""Random networks: what the runtime answers is what was predicted, whatever the operators stand in.

EXACTQ_SEED=N draws others, EXACTQ_NETWORKS=N as many.
"""

from __future__ import annotations

import os

import pytest

import exactq
from exactq.targets import TARGETS

from .drawn import drawn

SEED = int(os.environ.get("EXACTQ_SEED", "0"))
COUNT = int(os.environ.get("EXACTQ_NETWORKS", "40"))
COMPILED = {"inductor": 10}
"""Of how many networks one is looked at, for a target that compiles each for each batch."""


def later(target: str, seed: int) -> tuple[pytest.MarkDecorator, ...]:
    """Of PyTorch's engines the short run looks at two networks each, not the same ones."""
    place = [*TARGETS].index(target)
    short = place == 0 or (target not in COMPILED and (seed % 1000) // 2 == place)
    return () if short else (pytest.mark.slow,)


@pytest.mark.runtime
@pytest.mark.parametrize(
    ("target", "seed"),
    [
        pytest.param(target, seed, marks=later(target, seed))
        for target in TARGETS
        for seed in range(SEED * 1000, SEED * 1000 + COUNT, COMPILED.get(target, 1))
    ],
)
def test_the_runtime_gives_the_predicted_integers_of_a_drawn_network(target: str, seed: int) -> None:
    made, batches = drawn(seed, target)
    verdict = exactq.verify(made, batches)
    assert verdict.mismatches == 0, verdict
    if not verdict.equal:  # movement and activations alone: nothing is quantized, and that is said
        assert not made.coverage()  # none: inductor has no convolution of three axes
        assert not made.grids
