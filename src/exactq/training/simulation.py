"""The model as training sees it: a record of functions, so that every way of training through rounding is one more maker."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from exactq.errors import ModelError
from exactq.graphs.graph import Graph
from exactq.graphs.programs import is_compute
from exactq.numerics.formats import Grid
from exactq.plans.build import weight_and_bias
from exactq.plans.plan import Plan


@dataclass(frozen=True)
class Start:
    """Where training starts: a calibrated model. `graph` is the float one, `qdq` the same on the plan's grids.

    `grids` are those of activations, by value or `value@reader`. `trained` is what layers multiply with and add: the float
    weights and biases of convolutions and linear layers, on a grid or not. Raises `ModelError` where there is none.
    """

    graph: Graph
    qdq: Graph
    plan: Plan
    grids: Mapping[str, Grid]
    trained: Mapping[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        read = [
            c for n in self.graph.calls if is_compute(n) for c in weight_and_bias(n) if c is not None and c.op == "get_attr"
        ]
        names = {self.graph.name(c) for c in read}
        found = {name: tensor for name, tensor in self.graph.constants.items() if name in names and tensor.is_floating_point()}
        if not found:
            raise ModelError("the model has no convolution or linear layer with float weights: there is nothing to train")
        object.__setattr__(self, "trained", found)


@dataclass(frozen=True)
class State:
    """What changes: `trained` by the gradient, in place; `kept` by rules of its own (moving ranges, scales), by new tensors."""

    trained: dict[str, Tensor]
    kept: dict[str, Tensor]

    def copy(self) -> State:
        """The same values in memory of its own."""
        return State(*({k: v.detach().clone() for k, v in part.items()} for part in (self.trained, self.kept)))


@dataclass(frozen=True)
class Passed:
    """A forward pass: the outputs, and the values that were asked for."""

    outputs: tuple[Tensor, ...]
    values: Mapping[str, Tensor]


class Forward(Protocol):
    """A forward pass that is differentiable in `state.trained`.

    `keep` names values to hand out: `relu` as it was computed, `relu/real` on its grid. Tensors in `given` take the places of
    the values of their names; gradients are those of what was computed there.
    """

    def __call__(
        self, state: State, inputs: Sequence[Tensor], keep: Collection[str] = (), given: Mapping[str, Tensor] | None = None
    ) -> Passed:
        """The pass."""


@dataclass(frozen=True)
class Finished:
    """What training made: every trained constant, and the grid of each activation.

    `weights` are the grids of those weights for which the plan's observer is not asked again.
    """

    constants: Mapping[str, Tensor]
    grids: Mapping[str, Grid]
    weights: Mapping[str, Grid] = field(default_factory=dict)


@dataclass(frozen=True)
class Simulation:
    """One way to train through rounding, for one model.

    `begin()` is the state before the first step, `forward` the model in a state. `advance(state, values, step, share)` is the
    state for step number `step`, `share` (0 to 1) of training being done; it reads the values in `watched`. `settle(state)` is
    the state as it would be deployed; measure that one. `units(state)` says of each trained tensor what a small change is.
    `grids(state)` are those of all activations and weights. `finish(state)` is what the deployed model is made of.

    Learned steps are a `begin` with more in `trained` and `grids` that read them; training through a runtime's own kernels is
    another `forward`. `name` tells the states of two ways of training apart.
    """

    name: str
    begin: Callable[[], State]
    forward: Forward
    advance: Callable[[State, Mapping[str, Tensor], int, float], State]
    settle: Callable[[State], State]
    units: Callable[[State], Mapping[str, float]]
    grids: Callable[[State], Mapping[str, Grid]]
    finish: Callable[[State], Finished]
    watched: frozenset[str] = frozenset()


Method = Callable[[Start], Simulation]
"""How a calibrated model becomes one that can be trained."""
