"""The float model under the same training: what its schedule brings without any rounding, to hold the quantized one against.

Training by labels on other data than the model was made with adapts it to that data. A quantized model then looks better than
its float model, and none of it is owed to quantization: compare with the float model that went the same way.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from exactq.graphs.graph import op_name
from exactq.graphs.programs import bind
from exactq.graphs.qdq import REAL
from exactq.traces import Program, Step, walk
from exactq.training.simulation import Finished, Passed, Simulation, Start, State
from exactq.training.straight_through import straight_through


def unquantized(start: Start) -> Simulation:
    """The float graph, differentiable in what the quantized one trains, at the same rates: units are its grids' steps."""
    graph = start.graph
    bound = [(graph.name(node), *bind(graph, node, start.trained), op_name(node)) for node in graph.calls]
    steps = tuple(Step(name, run, reads, kernel) for name, run, reads, kernel in bound)
    program = Program((*(i.name for i in graph.inputs), *start.trained), steps, graph.outputs)

    def begin() -> State:
        return State({name: value.detach().clone().requires_grad_() for name, value in start.trained.items()}, {})

    def forward(
        state: State, inputs: Sequence[Tensor], keep: Collection[str] = (), given: Mapping[str, Tensor] | None = None
    ) -> Passed:
        kept: dict[str, Tensor] = {}

        def see(step: Step, value: Tensor) -> None:
            # Without a grid a value on its grid is the value.
            kept.update({name: value for name in (step.name, step.name + REAL) if name in keep})

        return Passed(walk(program, [*inputs, *state.trained.values()], see), kept)

    def units(state: State) -> Mapping[str, float]:
        rounded = straight_through(start)
        return rounded.units(rounded.begin())

    def finish(state: State) -> Finished:
        return Finished({name: value.detach().clone() for name, value in state.trained.items()}, start.grids)

    return Simulation(
        "unquantized",
        begin,
        forward,
        advance=lambda state, values, step, share: state,
        settle=lambda state: state,
        units=units,
        grids=lambda state: start.grids,
        finish=finish,
    )
