"""Learned steps: the papers' gradients, a start at the plan's grids, and what was learned is what is deployed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.nets import NETS, SHORT, quantized
from tests.training import models
from torch import Tensor, nn

from exactq import flow
from exactq.graphs.qdq import REAL
from exactq.numerics.formats import INT3, INT4, INT8, UINT4, Format, Grid
from exactq.plans.plan import Fixed
from exactq.quantization.ranges import SMALLEST
from exactq.quantized import Quantized
from exactq.training.courses import Course
from exactq.training.lsq import STEP, ZERO, lsq
from exactq.training.rounding import Learned, fake_quantize, learned_quantize
from exactq.training.simulation import State
from exactq.training.tuning import deployed, start_of, tune
from exactq.verification import verify


def grid(fmt: Format, scale: float, zero: int) -> Grid:
    return Grid(fmt, torch.tensor(scale), torch.tensor(zero, dtype=torch.int32))


# One value


def gradients(v: float, s: float, z: int, fmt: Format) -> tuple[float, float, float]:
    """dy/dv, dy/ds and dy/dz as the papers have them, in Python numbers: Esser et al. (3), Bhalgat et al. (4)."""
    low, high = fmt.lo - z, fmt.hi - z
    steps = round(v / s)
    if steps < low:
        return 0.0, float(low), -s
    if steps > high:
        return 0.0, float(high), -s
    return 1.0, steps - v / s, 0.0


@pytest.mark.parametrize(("fmt", "zero"), [(UINT4, 0), (UINT4, 5), (INT4.narrow, 0), (INT3, 1)])
@pytest.mark.parametrize("scale", [0.5, 0.25])
def test_the_gradients_are_those_of_the_papers(fmt: Format, zero: int, scale: float) -> None:
    at = grid(fmt, scale, zero)
    values = torch.arange(-6, 6, 0.0625)  # numbers that float32 divides exactly, so that Python's are the same
    for share in (1.0, 0.125):
        for value in values.tolist():
            x = torch.tensor([value], requires_grad=True)
            step, offset = torch.tensor(scale, requires_grad=True), torch.tensor(float(zero), requires_grad=True)
            y = learned_quantize(x, Learned(at, step, offset, share))
            assert torch.equal(y, fake_quantize(x.detach(), at))
            y.backward()
            by_x, by_step, by_zero = gradients(value, scale, zero, fmt)
            assert [x.grad.item(), step.grad.item(), offset.grad.item()] == [by_x, share * by_step, share * by_zero]


def test_each_channel_gathers_its_own_gradient() -> None:
    at = Grid(INT4.narrow, torch.tensor([[0.5], [0.25]]), torch.zeros(2, 1, dtype=torch.int32))
    x = torch.tensor([[0.625, 9.0], [0.0, 0.375]])
    step = at.scale.clone().requires_grad_()
    learned_quantize(x, Learned(at, step)).sum().backward()
    assert step.grad is not None
    assert step.grad.tolist() == [[(1 - 1.25) + 7], [2 - 1.5]]


def test_a_grid_that_does_not_learn_is_fake_quantized() -> None:
    x = torch.tensor([0.3], requires_grad=True)
    assert torch.equal(learned_quantize(x, Learned(grid(UINT4, 0.5, 0))), fake_quantize(x, grid(UINT4, 0.5, 0)))


# A model


def begun(made: Quantized) -> tuple[Any, State]:
    simulation = lsq(start_of(made))
    return simulation, simulation.begin()


@pytest.mark.parametrize("name", [n if n in SHORT else pytest.param(n, marks=pytest.mark.slow) for n in NETS])
def test_training_starts_at_the_plans_grids(name: str) -> None:
    made = quantized(name)
    simulation, state = begun(made)
    assert all(made.grids[name].same_as(at) for name, at in simulation.grids(state).items())
    assert deployed(made, simulation.finish(state)).artifact() == made.artifact()


def test_learned_grids_are_deployed_as_they_were_trained() -> None:
    made = models.quantized(INT4.narrow, multiplied=UINT4)
    simulation, state = begun(made)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in state.trained.items():
            scale = 3.0 if name.endswith(ZERO) else 0.1
            tensor.add_(scale * torch.randn(tensor.shape, generator=generator))
    grids = simulation.grids(state)
    after = deployed(made, simulation.finish(state))
    assert all(after.grids[name].same_as(at) for name, at in grids.items())
    assert not any(after.grids[name].same_as(made.grids[name]) for name in grids)
    weight = state.trained["conv.weight"].detach()
    assert torch.equal(
        grids["conv.weight"].encode(weight), after.grids["conv.weight"].encode(after.graph.constants["conv.weight"])
    )


def test_the_share_of_a_gradient_is_that_of_the_paper() -> None:
    """1/√(N·Q) times what reaches the scale, and the chain rule of s = s₀·e^λ: from a value alone in its model."""
    made = flow.quantize(
        nn.Linear(8, 2, bias=False).eval(), (torch.ones(2, 8),), calibration=[torch.linspace(-1, 3, 64).reshape(8, 8)]
    )
    simulation, state = begun(made)
    x = torch.linspace(-2, 4, 40).reshape(5, 8)
    simulation.forward(state, (x,)).outputs[0].sum().backward()
    weight, at = made.float_graph.constants["weight"], made.grids["weight"]
    read, result = (at for name, at in made.grids.items() if name != "weight")
    y, qx = at.decode(at.encode(weight)), read.decode(read.encode(x))
    g = _mask(qx @ y.T, result)
    by_step = ((g.T @ qx) * (y - weight) / at.scale).sum(1, keepdim=True) / math.sqrt(8 * 127)
    assert torch.allclose(state.trained[f"weight{STEP}"].grad, by_step * at.scale, rtol=1e-5)


def _mask(value: Tensor, at: Grid) -> Tensor:
    steps = torch.round(value / at.scale) + at.zero
    return ((steps >= at.format.lo) & (steps <= at.format.hi)).float()


def test_a_zero_at_an_end_stays_there_and_others_learn() -> None:
    made = models.quantized()
    _, state = begun(made)
    zeros = {name.removesuffix(ZERO) for name in state.trained if name.endswith(ZERO)}
    inner = {n for n, at in made.grids.items() if at.zero.numel() == 1 and 0 < int(at.zero) < 255}
    assert zeros == inner & {"x", "depthwise", "fc2"}
    assert "relu" not in zeros


def test_a_step_is_positive_whatever_happens_to_it() -> None:
    simulation, state = begun(models.quantized())
    with torch.no_grad():
        for name, tensor in state.trained.items():
            if name.endswith(STEP):
                tensor.fill_(-1000.0)
    grids = simulation.grids(state)
    assert float(grids["relu"].scale) == SMALLEST
    assert all(bool((at.scale > 0).all()) for at in grids.values())


def test_a_scale_behind_a_clamp_never_reaches_beyond_it() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU6(), nn.Conv2d(4, 2, 1)).eval()
    x = 9 * torch.randn(8, 1, 8, 8)
    made = flow.quantize(net, (x,), calibration=[x])
    simulation, state = begun(made)
    name = next(n for n, at in made.grids.items() if at.zero.numel() == 1 and float(at.scale * 255) == pytest.approx(6))
    with torch.no_grad():
        state.trained[f"{name}{STEP}"].fill_(0.7)
    assert simulation.grids(state)[name].same_as(made.grids[name])
    with torch.no_grad():
        state.trained[f"{name}{STEP}"].fill_(-0.7)
    after = deployed(made, simulation.finish(state))
    assert float(after.grids[name].scale) < float(made.grids[name].scale)
    assert verify(after, [(x,)], inputs=8).unverified == ()  # the kernel still ends with the clamp


def test_certified_weights_and_given_grids_do_not_learn() -> None:
    made = models.quantized(INT8.narrow, "pairsafe", isa="avx2")
    _, state = begun(made)
    assert "fc1.weight/step" not in state.trained
    assert "relu/step" in state.trained
    plan = made.plan
    slots = dict(plan.slots) | {"relu": Fixed(made.grids["relu"].format, 0.02, 0, "given")}
    given = flow.quantize_graph(
        made.float_graph,
        calibration=[b.inputs for b in models.images()],
        plan=type(plan)(plan.target, plan.isa, plan.recipe, slots, plan.edges),
    )
    _, state = begun(given)
    assert "relu/step" not in state.trained


def test_a_small_change_of_a_step_is_relative_and_of_a_zero_counts_codes() -> None:
    made = models.quantized()
    simulation, state = begun(made)
    units = simulation.units(state)
    assert set(units) == set(state.trained)
    assert {units[n] for n in units if n.endswith(STEP)} == {1.0}
    assert {units[n] for n in units if n.endswith(ZERO)} == {255.0}
    assert units["fc1.weight"] == float(made.grids["fc1.weight"].scale.double().mean())


def test_every_grid_learns_and_the_loss_falls() -> None:
    made = models.quantized(INT3.narrow)
    tuned = tune(made, models.images(256), course=Course(epochs=3, batch=32, rate=1e-2), method=lsq)
    scores = [line.score for line in tuned.history]
    assert -scores[tuned.best] < -scores[0] / 2
    own = [n for n, at in made.grids.items() if not n.endswith((".bias", REAL))]
    assert not any(tuned.quantized.grids[n].same_as(made.grids[n]) for n in own)
    assert tuned.quantized.plan == made.plan


@pytest.mark.runtime
def test_the_runtime_gives_the_integers_that_are_predicted() -> None:
    tuned = tune(
        models.quantized(INT4.narrow, multiplied=UINT4),
        models.images(),
        course=Course(epochs=2, batch=32, rate=1e-2),
        method=lsq,
    )
    verdict = verify(tuned.quantized, [b.inputs for b in models.images(32, seed=6)])
    assert verdict.equal
    assert verdict.elements > 5000


def test_learned_grids_are_where_the_next_training_starts() -> None:
    made = models.quantized(INT3.narrow)
    tuned = tune(made, models.images(), course=Course(epochs=2, batch=32, rate=1e-2), method=lsq).quantized
    simulation, state = begun(tuned)
    assert deployed(tuned, simulation.finish(state)).artifact() == tuned.artifact()
