"""Causes planted in drawn networks, alone and two at a time: what is found was planted, and nothing is unknown."""

from __future__ import annotations

import os
import random

import pytest
from tests.targets.drawn import drawn

from exactq.difference import Cause, diff, execution
from exactq.difference.sides import side

from .planted import lowered, qdq, regridded, weights_scaled

BITS = {Cause.MULTIPLIER, Cause.ORDER}
SEED = int(os.environ.get("EXACTQ_SEED", "0")) * 1000
NETWORKS = int(os.environ.get("EXACTQ_NETWORKS", "30"))

seeds = pytest.mark.parametrize(
    "seed", [pytest.param(SEED + n, marks=() if n < 4 else (pytest.mark.slow,)) for n in range(NETWORKS)]
)


@seeds
@pytest.mark.parametrize("target", ["onnxruntime", "fbgemm", pytest.param("qnnpack", marks=pytest.mark.slow)])
def test_what_is_found_in_a_drawn_network_was_planted(seed: int, target: str) -> None:
    made, batches = drawn(seed, target)
    draw = random.Random(seed)
    graph = made.graph
    keys = list(side(qdq(graph), graph, {}).grids)
    if not keys:
        pytest.skip("nothing in this network has codes")
    planted = set(draw.sample([Cause.WEIGHTS, Cause.ACTIVATIONS], draw.choice([1, 2])))
    changed = graph
    if Cause.WEIGHTS in planted:
        changed = weights_scaled(changed, draw.choice([127.5 / 127, 127.5 / 128, 1.1]))
    if Cause.ACTIVATIONS in planted:
        changed = regridded(changed, draw.choice(keys), scale=draw.choice([0.9, 1.05, 1.5]))
    result = diff(qdq(graph), qdq(changed), [batches[2]])
    found = {c.cause for c in result.causes} - BITS
    assert found <= planted, (planted, result)
    assert found or not any(t.given_equal for t in result.tensors)


@seeds
@pytest.mark.parametrize("target", ["fbgemm", pytest.param("onednn", marks=pytest.mark.slow)])
def test_engines_and_machines_differ_by_known_causes(seed: int, target: str) -> None:
    made, batches = drawn(seed, target)
    machines = diff(execution(made, "emulator@avx2"), execution(made, "emulator@avx512vnni"), [batches[2]])
    assert {c.cause for c in machines.causes} <= {Cause.PAIRS, *BITS}, machines
    if not any(step.kernel.startswith("aten.") and step.inexact for step in made.program().steps):
        other = lowered(made.graph, "qnnpack")
        engines = diff(execution(made), other, [batches[2]])
        allowed = {Cause.PAIRS, Cause.BIAS, Cause.ZERO, *BITS}
        assert {c.cause for c in engines.causes} <= allowed, engines
