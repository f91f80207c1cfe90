"""The emulator with biases held the way that the engine does not: what rounding a bias changes, and nothing else."""

from __future__ import annotations

import pytest
import torch
from tests.targets.networks import EXAMPLES, WHOLE, batch, quantized
from torch import Tensor

from exactq.explanation import explain_biases
from exactq.kernels.anatomy import FloatBias, IntegerBias, Products
from exactq.targets.pytorch.lower import lower, on_product_grid
from exactq.targets.pytorch.rules import ENGINES
from exactq.traces import trace

CONVOLUTION, LINEAR = EXAMPLES["aten.conv2d"][0], EXAMPLES["aten.linear"][0]


def codes(engine: str, held: str | None, example: object = CONVOLUTION) -> dict[str, Tensor]:
    """What an engine makes of one graph with real biases, its own way or with biases held so."""
    made = quantized(example, target="fbgemm")  # type: ignore[arg-type]
    inputs = batch(example, 16, 3)  # type: ignore[arg-type]
    return trace(lower(engine, made.graph, made.plan.isa, biases=held), inputs)  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("example", [CONVOLUTION, LINEAR, WHOLE[4]], ids=lambda e: e.name)
def test_an_engines_own_way_is_the_emulator(engine: str, example: object) -> None:
    own = codes(engine, None, example)
    same = codes(engine, "int32" if engine == "qnnpack" else "float32", example)
    assert list(own) == list(same)
    assert all(torch.equal(own[name], same[name]) for name in own)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_other_way_changes_single_layers_by_one_step_and_not_often(engine: str) -> None:
    made = quantized(CONVOLUTION, target="fbgemm")
    reals, integers = (codes(engine, held) for held in ("float32", "int32"))
    first = next(step.name for step in made.program().steps if isinstance(step.anatomy, Products))
    off = (reals[first].int() - integers[first].int()).abs()
    assert int(off.max()) == 1
    assert float((off > 0).float().mean()) < 0.05
    (layer,) = (found for found in explain_biases(made).layers if f"{found.made}/codes" == first)
    moved = {int(c) for c in off.amax((0, 2, 3)).nonzero()}
    assert all(layer.channels[c].error for c in moved)  # a bias that lies on the grid changes nothing


def test_the_steps_say_how_the_bias_is_held() -> None:
    made = quantized(CONVOLUTION, target="fbgemm")
    kinds = {"float32": FloatBias, "int32": IntegerBias}
    for held, kind in kinds.items():
        steps = lower("qnnpack", made.graph, "avx512vnni", biases=held).steps  # type: ignore[arg-type]
        assert {type(s.anatomy.bias) for s in steps if isinstance(s.anatomy, Products)} == {kind}


def test_a_bias_on_the_grid_of_its_products_is_within_half_a_step() -> None:
    made = quantized(CONVOLUTION, target="fbgemm")
    (anatomy, *_) = (s.anatomy for s in made.program().steps if isinstance(s.anatomy, Products))
    assert isinstance(anatomy.bias, FloatBias)
    rounded = on_product_grid(anatomy.bias.values, anatomy.x, anatomy.w).double()
    steps = rounded / anatomy.bias.scale.double()
    assert (steps - steps.round()).abs().max() < 2**-10  # float32 reals of codes of some thousands
    assert bool(((rounded - anatomy.bias.values.double()).abs() <= anatomy.bias.scale * (0.5 + 2**-10)).all())
