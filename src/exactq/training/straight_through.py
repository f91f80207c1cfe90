"""Fake quantization with the straight-through estimator, on exactly the grids that the deployed model has.

Weight grids follow the weights, by the plan's observer; activation grids are those of calibration, frozen, or moving for a
part of the training and frozen then. Rounding and its gradient: `rounding`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exactq.calibration import observer_named
from exactq.errors import DataError, UsageError
from exactq.numerics.formats import Grid
from exactq.plans.plan import Own
from exactq.quantization.ranges import grid
from exactq.training.simulated import RANGE, passed, searched_scales, simulated, small_changes, value_of, with_weights
from exactq.training.simulation import Finished, Passed, Simulation, Start, State

REFRESH = 50
"""Steps between two searches for the scales of weights whose observer searches (`mse`, `pairsafe`): a search can take longer
than a training step. In between the scales stand; `minmax` grids follow every step."""


@dataclass(frozen=True)
class Moving:
    """Ranges that follow training: r ← r + (1 − decay)·(range of the batch − r), frozen when `until` of the steps are done.

    A batch's range is what the plan's observer says of it alone.
    """

    decay: float = 0.99
    until: float = 0.5

    def __post_init__(self) -> None:
        if not (0 <= self.decay < 1 and 0 < self.until <= 1):
            raise UsageError(f"moving ranges need a decay in [0, 1) and an end in (0, 1], not {self.decay} and {self.until}")


def straight_through(start: Start, *, ranges: Moving | None = None, refresh: int = REFRESH) -> Simulation:
    """The model on the plan's grids, as `quantized.graph` has them, differentiable by the straight-through estimator.

    Weight grids are found anew from the weights as they are, by the plan's observer: every step for `minmax`, every `refresh`
    steps for those that search. Activation grids stay as calibrated, or follow `ranges`.
    """
    if refresh < 1:
        raise UsageError(f"weight scales are refreshed every {refresh} steps: 1 or more")
    model = simulated(start)
    own = {name: slot for name, slot in model.activations.items() if isinstance(slot, Own)}
    moving = own if ranges is not None else {}

    def begin() -> State:
        trained = {name: value.detach().clone().requires_grad_() for name, value in start.trained.items()}
        state = State(trained, {name + RANGE: _span(start.grids[name]) for name in moving})
        return settle(state)

    def activation_grids(state: State) -> dict[str, Grid]:
        return {
            name: _ranged(state.kept[name + RANGE], own[name]) if name + RANGE in state.kept else start.grids[name]
            for name in model.activations
        }

    def all_grids(state: State) -> dict[str, Grid]:
        return with_weights(model.weights, state, activation_grids(state))

    def forward(
        state: State, inputs: Sequence[Tensor], keep: Collection[str] = (), given: Mapping[str, Tensor] | None = None
    ) -> Passed:
        return passed(model.program, [*inputs, *state.trained.values(), *all_grids(state).values()], keep, given)

    def advance(state: State, values: Mapping[str, Tensor], step: int, share: float) -> State:
        kept = dict(state.kept)
        if ranges is not None and share <= ranges.until:
            for name, slot in moving.items():
                before = kept[name + RANGE]
                kept[name + RANGE] = before + (1 - ranges.decay) * (_seen(values[value_of(name)], slot, name) - before)
        moved = State(state.trained, kept)
        return settle(moved) if step % refresh == 0 else moved

    def settle(state: State) -> State:
        return State(state.trained, state.kept | searched_scales(model.weights, state, activation_grids(state)))

    def units(state: State) -> Mapping[str, float]:
        grids = all_grids(state)
        return small_changes(state.trained, {name: grids[name] for name in model.weights})

    def finish(state: State) -> Finished:
        return Finished({name: value.detach().clone() for name, value in state.trained.items()}, activation_grids(state))

    name = "straight_through" if ranges is None else f"straight_through, {ranges}"
    return Simulation(name, begin, forward, advance, settle, units, all_grids, finish, frozenset(map(value_of, moving)))


def _span(at: Grid) -> Tensor:
    """The reals of the lowest and the highest code, float32 (2,)."""
    return torch.stack([at.scale * (code - int(at.zero)) for code in (at.format.lo, at.format.hi)])


def _ranged(span: Tensor, slot: Own) -> Grid:
    return grid(span[0], span[1], slot.format, symmetric=slot.symmetric)


def _seen(value: Tensor, slot: Own, name: str) -> Tensor:
    observer = observer_named(slot.observer)
    try:
        return torch.tensor(observer.range(observer.see(observer.start(), value), slot.format, slot.symmetric))
    except DataError as error:
        raise DataError(f"training, value `{name}`: {error}") from error
