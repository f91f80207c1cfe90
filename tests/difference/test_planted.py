"""Causes that were planted, alone and together, are found by name and in the order of their shares; what was not is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from exactq.difference import Cause, Diff, Execution, diff, execution
from exactq.graphs.qdq import CODES
from exactq.traces import Step

from .planted import (
    biased,
    in_double,
    inputs,
    lowered,
    made,
    qdq,
    regridded,
    stepwise,
    unbounded,
    weights_scaled,
    without_codes,
)

BITS = {Cause.MULTIPLIER, Cause.ORDER}
"""What two arithmetics may differ by besides: the last bits of float32, in a few elements."""

Pair = Callable[[], tuple[Execution, Execution]]


def found(pair: tuple[Execution, Execution], size: int = 16) -> Diff:
    images = (inputs(size)[0] * 32).round() / 32  # half steps of 2⁻⁴ among them
    return diff(*pair, [(images,)], inputs=size)


def weight_grids() -> tuple[Execution, Execution]:
    graph = made().graph
    return qdq(graph), qdq(weights_scaled(graph, 127.5 / 127))


def activation_grids() -> tuple[Execution, Execution]:
    graph = made().graph
    return qdq(graph), qdq(regridded(graph, "relu", scale=1.1))


def pairs() -> tuple[Execution, Execution]:
    return execution(made(), "emulator@avx2"), execution(made(), "emulator@avx512vnni")


def reduced_range() -> tuple[Execution, Execution]:
    graph = made().graph
    return qdq(regridded(graph, "relu", hi=127)), qdq(graph)


def biases() -> tuple[Execution, Execution]:
    graph = regridded(made().graph, "relu", scale=40.0)  # coarse steps of the products, so that rounding a bias shows
    return lowered(graph, "fbgemm"), lowered(graph, "qnnpack")


def overflowing_biases() -> tuple[Execution, Execution]:
    small = biased(biased(made().graph, "first", 0.0), "last", 0.0)
    graph = biased(weights_scaled(small, 1e-7, "second"), "second", 0.5)
    return lowered(graph, "fbgemm"), lowered(graph, "qnnpack")


def left_in_float() -> tuple[Execution, Execution]:
    graph = made().graph
    return qdq(without_codes(graph, "relu", "reshape")), qdq(graph)


def summation() -> tuple[Execution, Execution]:
    graph = regridded(made().graph, "relu", scale=0.05)  # fine steps, so that last bits reach some half steps
    return qdq(graph), in_double(qdq(graph))


def wrong() -> tuple[Execution, Execution]:
    return execution(made()), spoilt(execution(made()))


def spoilt(given: Execution) -> Execution:
    """The execution with one channel that no arithmetic explains."""

    def change(step: Step) -> Step:
        if step.name != "relu" + CODES:
            return step
        return replace(step, run=lambda *x: step.run(*x).clone().index_fill_(1, torch.tensor([2]), 7))

    return stepwise(given, change)


def zeros() -> tuple[Execution, Execution]:
    """Inputs at half steps of a grid with an odd zero: fake quantization adds it after the rounding, torch.quantize before."""
    graph = regridded(made().graph, "x", step=2.0**-4, zero=127)
    return qdq(graph), lowered(graph, "fbgemm")


def multipliers() -> tuple[Execution, Execution]:
    """m = sx·sw / sy is a half but for the rounding of the scales, which the two engines do in another order."""
    graph = made().graph
    for layer in ("first", "second", "last"):
        graph = biased(graph, layer, 0.0)
    graph = weights_scaled(graph, lambda scale: torch.full_like(scale, 0.09), "second")
    graph = regridded(regridded(graph, "relu6", step=0.01), "relu", step=0.0018)
    return lowered(graph, "fbgemm"), lowered(graph, "qnnpack")


def clamps() -> tuple[Execution, Execution]:
    """A kernel that leaves a relu6 to the end of a grid, which lies beyond 6."""
    graph = regridded(made().graph, "relu6", scale=1.3)
    bounded = lowered(graph, "fbgemm")
    fused = lowered(unbounded(graph, "relu6"), "fbgemm").program.steps
    steps = {step.name: step for step in fused}
    covers = ("first", "relu6")

    def change(step: Step) -> Step:
        return replace(steps[step.name], covers=covers) if step.name == "relu6" + CODES else step

    return bounded, stepwise(bounded, change)


ALONE: dict[Cause, Pair] = {
    Cause.WEIGHTS: weight_grids,
    Cause.ACTIVATIONS: activation_grids,
    Cause.PAIRS: pairs,
    Cause.RANGE: reduced_range,
    Cause.ZERO: zeros,
    Cause.BIAS: biases,
    Cause.OVERFLOW: overflowing_biases,
    Cause.MULTIPLIER: multipliers,
    Cause.ACTIVATION: clamps,
    Cause.FLOAT: left_in_float,
    Cause.ORDER: summation,
    Cause.UNKNOWN: wrong,
}


@pytest.mark.parametrize("cause", ALONE)
def test_a_cause_that_acts_alone_is_named_and_nothing_else(cause: Cause) -> None:
    result = found(ALONE[cause](), 192 if cause is Cause.ORDER else 16)
    assert not result.equal
    assert [c.cause for c in result.causes if c.cause not in BITS - {cause}] == [cause], result
    assert next(c.share for c in result.causes if c.cause is cause) > 0.9, result


def mixed() -> dict[tuple[Cause, ...], Pair]:
    """Causes in the order of their shares -> a pair of executions with all of them."""
    graph = made().graph
    wider = weights_scaled(graph, 127.5 / 127)
    coarse = regridded(graph, "relu", scale=40.0)
    return {
        (Cause.WEIGHTS, Cause.PAIRS): lambda: (lowered(graph, "onednn", "avx2"), lowered(wider, "onednn")),
        (Cause.WEIGHTS, Cause.RANGE): lambda: (qdq(regridded(graph, "relu", hi=127)), qdq(wider)),
        (Cause.ACTIVATIONS, Cause.WEIGHTS): lambda: (qdq(regridded(graph, "relu6", scale=1.1)), qdq(wider)),
        (Cause.PAIRS, Cause.BIAS): lambda: (lowered(coarse, "fbgemm", "avx2"), lowered(coarse, "qnnpack")),
        (Cause.WEIGHTS, Cause.UNKNOWN): lambda: (qdq(graph), spoilt(qdq(wider))),
    }


@pytest.mark.parametrize("causes", mixed())
def test_causes_that_act_together_are_named_in_the_order_of_their_shares(causes: tuple[Cause, ...]) -> None:
    result = found(mixed()[causes]())
    assert tuple(c.cause for c in result.causes if c.cause not in BITS) == causes, result
    shares = [c.share for c in result.causes]
    assert shares == sorted(shares, reverse=True)
    together = [c.together for c in result.causes if c.together is not None]
    assert together == sorted(together)


def test_equal_executions_are_equal_and_have_no_causes() -> None:
    result = found((execution(made()), execution(made(), "runtime")))
    assert result.equal
    assert (result.first, result.causes) == (None, ())
    assert sum(t.elements for t in result.tensors) > 1000
    assert str(result).endswith("equal: every element")
