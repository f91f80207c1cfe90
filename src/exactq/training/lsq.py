"""Learned step sizes: the scales of weights and activations, and zeros, are trained with the weights.

s = s₀·e^λ      λ starts at 0, so training starts at the plan's own grids: epoch 0 is the quantized model, bit for bit
z = rint(ζ)     clamped to the format; ζ starts at the plan's zero. The forward pass has the rounded zero: it is what deploys
g = 1/√(N·Q)    multiplies the gradients of s and z: N elements share the scale (of one sample), Q is the highest code less
                the zero (Esser et al. 2020, arXiv 1902.08153)

The paper trains s itself, from 2·mean|v|/√Q; e^λ is positive whatever an optimizer does, and a change of λ is relative to each
channel's own step. A zero at an end of its format stays there: its value has one sign, often because a relu is fused into the
kernel, which then needs that end. A scale behind a clamp never reaches beyond it, for the same reason. Weights whose observer
certifies pairs keep that observer's grids: a learned scale would lose the certificate.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exactq.graphs.programs import shapes
from exactq.numerics.formats import Grid
from exactq.optimization.patterns import bounds
from exactq.plans.plan import Own
from exactq.quantization.bias import guard
from exactq.quantization.ranges import SMALLEST
from exactq.training.rounding import Learned, fake_quantize_bias, learned_quantize
from exactq.training.simulated import (
    Rounding,
    Weight,
    passed,
    searched_scales,
    simulated,
    small_changes,
    value_of,
    with_weights,
)
from exactq.training.simulation import Finished, Passed, Simulation, Start, State
from exactq.training.straight_through import REFRESH

STEP, ZERO = "/step", "/zero"
"""What follows the name of a value: λ and ζ among what is trained."""

_ROUNDING = Rounding(learned_quantize, lambda bias, x, w: fake_quantize_bias(bias, x.grid, w.grid))


@dataclass(frozen=True)
class _Learner:
    """One grid that learns: where it starts, the share of its gradients, whether its zero moves, and its largest scale."""

    start: Grid
    share: float
    moves: bool = False
    largest: float = math.inf

    def scale(self, step: Tensor) -> Tensor:
        """The scale for λ = `step`, float32 of the grid's shape."""
        return (self.start.scale * step.exp()).clamp(SMALLEST, self.largest)


def lsq(start: Start, *, refresh: int = REFRESH) -> Simulation:
    """The model on grids that are learned, differentiable by the straight-through estimator.

    Grids that the plan fixes, and weights whose pairs are certified, are as in `straight_through`.
    """
    model = simulated(start, _ROUNDING)
    learned = _weights(start, model.weights) | _activations(start, model.activations)
    others = {name: weight for name, weight in model.weights.items() if name not in learned}

    def begin() -> State:
        trained = {name: value.detach().clone() for name, value in start.trained.items()}
        for name, learner in learned.items():
            trained[name + STEP] = torch.zeros_like(learner.start.scale)
            if learner.moves:
                trained[name + ZERO] = learner.start.zero.float()
        return settle(State({name: value.requires_grad_() for name, value in trained.items()}, {}))

    def activation_grids(state: State) -> dict[str, Grid]:
        return {name: _grid(name, learned[name], state) if name in learned else start.grids[name] for name in model.activations}

    def all_grids(state: State) -> dict[str, Grid]:
        with torch.no_grad():
            grids = with_weights(others, state, activation_grids(state))
            for name, weight in model.weights.items():
                if name in learned:
                    grids[name] = _roomy(_grid(name, learned[name], state), weight, state.trained, grids)
        return {name: grids[name] for name in (*model.activations, *model.weights)}

    def forward(
        state: State, inputs: Sequence[Tensor], keep: Collection[str] = (), given: Mapping[str, Tensor] | None = None
    ) -> Passed:
        grids = [_learning(name, at, learned.get(name), state) for name, at in all_grids(state).items()]
        floats = [state.trained[name] for name in start.trained]
        return passed(model.program, [*inputs, *floats, *grids], keep, given)

    def advance(state: State, values: Mapping[str, Tensor], step: int, share: float) -> State:
        return settle(state) if step % refresh == 0 else state

    def settle(state: State) -> State:
        return State(state.trained, state.kept | searched_scales(others, state, activation_grids(state)))

    def units(state: State) -> Mapping[str, float]:
        """As elsewhere; of λ it is 1, a change by e, and of ζ all of the format's codes: of the same order for the range."""
        grids = all_grids(state)
        floats = {name: state.trained[name] for name in start.trained}
        found = small_changes(floats, {name: grids[name] for name in model.weights})
        for name, learner in learned.items():
            found[name + STEP] = 1.0
            if learner.moves:
                found[name + ZERO] = float(learner.start.format.hi - learner.start.format.lo)
        return found

    def finish(state: State) -> Finished:
        grids = all_grids(state)
        return Finished(
            {name: state.trained[name].detach().clone() for name in start.trained},
            {name: grids[name] for name in model.activations},
            {name: grids[name] for name in model.weights if name in learned},
        )

    return Simulation("lsq", begin, forward, advance, settle, units, all_grids, finish)


def _weights(start: Start, weights: Mapping[str, Weight]) -> dict[str, _Learner]:
    return {
        name: _Learner(weight.given, _share(start.trained[name].numel() // weight.given.scale.numel(), weight.given))
        for name, weight in weights.items()
        if isinstance(weight.slot, Own) and not weight.slot.observer.startswith("pairsafe")
    }


def _activations(start: Start, lines: Mapping[str, object]) -> dict[str, _Learner]:
    sizes, found = shapes(start.graph), dict[str, _Learner]()
    for name, slot in lines.items():
        if not isinstance(slot, Own):
            continue
        at, fmt = start.grids[name], start.grids[name].format
        zero, value = int(at.zero), value_of(name)
        ends = bounds(start.graph.node(value))
        high = ends[1] if ends is not None and zero < fmt.hi else math.inf
        # As far as the scale that ends at the bound, and never below the one that the plan has.
        largest = max(float(torch.tensor(high) / (fmt.hi - zero)), float(at.scale)) if math.isfinite(high) else math.inf
        moves = not slot.symmetric and fmt.lo < zero < fmt.hi
        found[name] = _Learner(at, _share(math.prod(sizes[value][1:]), at), moves, largest)
    return found


def _share(elements: int, at: Grid) -> float:
    """1/√(N·Q)."""
    return 1 / math.sqrt(max(1, elements) * max(1, at.format.hi - int(at.zero.flatten()[0])))


def _grid(name: str, learner: _Learner, state: State) -> Grid:
    at = learner.start
    zero = at.zero
    if learner.moves:
        zero = state.trained[name + ZERO].detach().round().clamp(at.format.lo, at.format.hi).to(torch.int32)
    return Grid(at.format, learner.scale(state.trained[name + STEP].detach()), zero)


def _learning(name: str, at: Grid, learner: _Learner | None, state: State) -> Learned:
    """The grid with its way to λ and ζ, for the program."""
    if learner is None:
        return Learned(at)
    step = learner.scale(state.trained[name + STEP])
    return Learned(at, step, state.trained[name + ZERO] if learner.moves else None, learner.share)


def _roomy(at: Grid, weight: Weight, trained: Mapping[str, Tensor], grids: Mapping[str, Grid]) -> Grid:
    """The grid, its scales raised where a bias needs it, as `apply` would."""
    for bias, x in weight.biases:
        at = guard(trained[bias], grids[x].scale, at)[0]
    return at
