"""Training through the emulator: its integers forward, the fake-quantized region backward, and what was trained is deployed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.nets import NETS, SHORT, data, quantized
from tests.training import models
from torch import Tensor, nn

from exactq import flow
from exactq.graphs.qdq import CODES, REAL
from exactq.metrics import Run
from exactq.numerics.formats import INT3, INT4, INT8
from exactq.quantized import Quantized
from exactq.sources.resolve import resolve
from exactq.targets import TARGETS
from exactq.traces import Step, walk
from exactq.training.courses import Course
from exactq.training.exact import exact
from exactq.training.lsq import lsq
from exactq.training.rounding import fake_quantize_bias
from exactq.training.simulation import Method, Start
from exactq.training.straight_through import Moving, straight_through
from exactq.training.tuning import deployed, start_of, tune


def method(made: Quantized, gradient: Method = straight_through) -> Method:
    return lambda start: exact(start, made.lower, gradient=gradient)


def moved(state: Any, seed: int = 4) -> None:
    """Every trained tensor a little elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in state.trained.values():
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))


def reals(made: Quantized, inputs: Any) -> dict[str, Tensor]:
    """The values of the deployed model's emulator, codes decoded."""
    found: dict[str, Tensor] = {}

    def see(step: Step, value: Tensor) -> None:
        if step.grid is not None:
            found[step.name.removesuffix(CODES) + REAL] = step.grid.decode(value)

    with torch.no_grad():
        walk(made.program(), inputs, see)
    return found


GRADIENTS: dict[str, Method] = {
    "straight through": straight_through,
    "moving ranges": lambda start: straight_through(start, ranges=Moving(decay=0.5)),
    "learned": lsq,
}


FIRST = ("onnxruntime", "fbgemm")
"""The targets that the short run looks at; fbgemm stands for PyTorch's engines."""


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("target", [n if n in FIRST else pytest.param(n, marks=pytest.mark.slow) for n in TARGETS])
def test_the_evaluation_forward_is_the_emulator_of_what_is_deployed(target: str, gradient: str) -> None:
    made = models.quantized(INT4.narrow, target=target)
    simulation = method(made, GRADIENTS[gradient])(start_of(made))
    state = simulation.begin()
    moved(state)
    batch = next(iter(models.images(seed=9))).inputs
    with torch.no_grad():
        seen = simulation.forward(state, batch, simulation.watched).values
    state = simulation.settle(simulation.advance(state, seen, 1, 0.1))
    after = deployed(made, simulation.finish(state))
    wanted = reals(after, batch)
    assert len(wanted) > 6
    passed = simulation.forward(state, batch, wanted)  # with a gradient every value is handed out
    for name, value in wanted.items():
        assert torch.equal(passed.values[name], value), name
    with torch.no_grad():
        alone = simulation.forward(state, batch).outputs
        outputs = walk(after.program(), batch)
    for a, b, c in zip(passed.outputs, alone, outputs, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, c)


@pytest.mark.parametrize("name", [n if n in SHORT else pytest.param(n, marks=pytest.mark.slow) for n in NETS])
def test_an_untrained_state_is_the_quantized_models_emulator(name: str) -> None:
    made = quantized(name)
    simulation = method(made)(start_of(made))
    for inputs in data(NETS[name][1], 1, seed=3):
        with torch.no_grad():
            wanted = walk(made.program(), inputs)
        passed = simulation.forward(simulation.begin(), inputs)
        assert all(torch.equal(a, b) for a, b in zip(passed.outputs, wanted, strict=True))


@pytest.mark.runtime
@pytest.mark.parametrize("target", ["onnxruntime", "fbgemm"])
@pytest.mark.parametrize("gradient", ["straight through", "learned"])
def test_the_runtime_answers_as_the_last_evaluation_of_training_did(target: str, gradient: str) -> None:
    made = models.quantized(INT3.narrow, target=target)
    inputs = [b.inputs for b in models.images(200, seed=6)]
    scored: list[list[Tensor]] = []

    def evaluate(run: Run) -> float:
        scored.append([run(x)[0] for x in inputs])
        return float(len(scored))  # the last is the best

    course = Course(epochs=2, batch=32, rate=1e-2)
    tuned = tune(made, models.images(), course=course, method=method(made, GRADIENTS[gradient]), evaluate=evaluate).quantized
    answer = tuned.target.timed(tuned.artifact(), 1)
    assert len(scored) == 3
    assert not torch.equal(scored[0][0], scored[2][0])
    assert all(torch.equal(answer(x)[0], seen) for x, seen in zip(inputs, scored[2], strict=True))
    assert flow.verify(tuned, inputs).equal


def test_the_gradient_is_that_of_the_fake_quantized_region_at_the_emulators_values() -> None:
    """By hand, for linear, relu, linear: what passes between the two is what the emulator made."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).eval()
    x = torch.randn(64, 6)
    made = flow.quantize(net, (x,), calibration=[x])
    simulation = method(made)(start_of(made))
    state = simulation.begin()
    wide = 2 * x  # some codes clamp
    slope = torch.arange(1.0, 5.0).expand(64, 4)
    (simulation.forward(state, (wide,)).outputs[0] * slope).sum().backward()

    seen, grids, constants = reals(made, (wide,)), made.grids, made.float_graph.constants
    w1, w2 = (constants[n] for n in ("0.weight", "2.weight"))
    fq1, fq2 = (grids[n].decode(grids[n].encode(w)) for n, w in (("0.weight", w1), ("2.weight", w2)))
    names = [n.removesuffix(REAL) for n in seen]  # input, hidden, output
    b1 = fake_quantize_bias(constants["0.bias"], grids[names[0]], grids["0.weight"])
    b2 = fake_quantize_bias(constants["2.bias"], grids[names[1]], grids["2.weight"])

    def inside(value: Tensor, name: str) -> Tensor:
        at = grids[name]
        steps = torch.round(value / at.scale) + at.zero
        return (steps >= at.format.lo) & (steps <= at.format.hi)

    before = F.linear(seen[f"{names[0]}{REAL}"], fq1, b1)
    hidden = seen[f"{names[1]}{REAL}"]
    g2 = slope * inside(F.linear(hidden, fq2, b2), names[2])
    g1 = (g2 @ fq2) * inside(before.relu(), names[1]) * (before > 0)
    assert not bool(inside(before.relu(), names[1]).all())
    for name, wanted in (("2.weight", g2.T @ hidden), ("2.bias", g2.sum(0)), ("0.weight", g1.T @ seen[f"{names[0]}{REAL}"])):
        found = state.trained[name].grad
        assert found is not None
        assert bool(found.any())
        # Sums of 64 products, in an order of their own: each rounding is at most half an ulp of the sum of magnitudes.
        assert torch.allclose(found, wanted, rtol=64 * 2**-23, atol=64 * 2**-23 * float(wanted.abs().max()))


def test_the_detached_difference_that_others_use_is_not_the_codes() -> None:
    codes, fake = torch.tensor([0.1]), torch.tensor([1.0])
    assert not torch.equal(fake + (codes - fake), codes)


def test_an_instruction_set_that_saturates_is_trained_on_its_own_integers() -> None:
    """Full-range weights on AVX2 saturate pairs: training there sees what that machine answers."""
    made = models.quantized(INT8.narrow, isa="avx512vnni")
    there = made.target.lower(made.graph, "avx2")
    start = start_of(made)
    inputs = (4 * next(iter(models.images(seed=2))).inputs[0],)
    with torch.no_grad():
        here = exact(start, made.lower).forward(straight_through(start).begin(), inputs).outputs[0]
        seen = exact(start, lambda graph: made.target.lower(graph, "avx2")).forward(straight_through(start).begin(), inputs)
        assert torch.equal(seen.outputs[0], walk(there, inputs)[0])
    assert torch.equal(here, walk(made.program(), inputs)[0])


def test_float_layers_learn_too() -> None:
    made = models.quantized(stays_float="fc2")
    simulation = method(made)(start_of(made))
    state = simulation.begin()
    simulation.forward(state, next(iter(models.images())).inputs).outputs[0].square().sum().backward()
    assert all(tensor.grad is not None and bool(tensor.grad.any()) for tensor in state.trained.values())


def test_a_folded_normalisation_leaves_nothing_to_freeze() -> None:
    """Its statistics are in weights and bias, so a batch of one trains as its share of a large one does."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
    for _ in range(20):
        net(3 * torch.randn(16, 1, 8, 8) + 1)  # statistics that are not those of a fresh layer
    x = torch.randn(4, 1, 8, 8)
    made = flow.quantize(net.eval(), (x,), calibration=[x])
    start: Start = start_of(made)
    assert sorted(start.trained) == ["0.bias", "0.weight", "4.bias", "4.weight"]
    simulation = method(made)(start)
    state = simulation.begin()
    with torch.no_grad():
        whole = simulation.forward(state, (x,)).outputs[0]
        single = [simulation.forward(state, (one[None],)).outputs[0] for one in x]
    assert torch.equal(torch.cat(single), whole)


@pytest.mark.slow
@pytest.mark.runtime
@pytest.mark.parametrize(("target", "recipe"), [("onnxruntime", "w8a8"), ("onnxruntime", "w4a4"), ("fbgemm", "w8a8")])
def test_the_trained_resnet20_answers_on_the_runtime_as_it_did_in_training(
    target: str, recipe: str, request: pytest.FixtureRequest
) -> None:
    """500 test images here; bench/deployed_as_trained.py takes all 10,000."""
    folder: Path = request.getfixturevalue("data")
    file = folder / "models" / "resnet20-12fca82f.th"
    if not file.is_file() or not (folder / "cifar10").is_dir():
        pytest.skip("models/resnet20-12fca82f.th or cifar10 is not in EXACTQ_DATA")
    source = resolve("resnet20", weights=str(file), data=f"cifar10:{folder / 'cifar10'}")
    assert source.dataset.train is not None
    graph = flow.prepare(source.module, source.example)
    calibration = (b.inputs for b in source.dataset.calibration)
    made = flow.quantize_graph(graph, calibration=calibration, target=target, recipe=recipe)
    inputs = [b.inputs for b in source.dataset.evaluation.first(500)]
    seen: list[list[Tensor]] = []

    def evaluate(run: Run) -> float:
        seen.append([run(x)[0] for x in inputs])
        return float(len(seen))

    course, train = Course(epochs=1, held_out=0.0), source.dataset.train.shuffled(0).first(256)  # type: ignore[union-attr]
    tuned = tune(made, train, course=course, method=method(made), evaluate=evaluate).quantized
    answer = tuned.target.timed(tuned.artifact(), 1)
    assert all(torch.equal(answer(x)[0], trained) for x, trained in zip(inputs, seen[-1], strict=True))
