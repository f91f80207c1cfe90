"""Training through the runtime's own arithmetic: the forward pass is the emulator, integers and all.

Forward, for every value that the emulator makes: the reals of its codes, s·(q − z). Backward: the gradient of the
fake-quantized region that the value stands for, at the emulator's values. One `autograd.Function` a value does both
(`rounding.substitute`). The usual trick, fq + (exact − fq).detach(), rounds the difference and the sum and is not bit-exact.

The weights are constants of lowered steps, so each pass writes the present codes into the Q/DQ graph and lowers it anew: what
is trained is what `apply` and `lower` make of the finished model, by the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from exactq.graphs.graph import Edit, Graph
from exactq.graphs.qdq import CODES, DEQUANTIZE, QUANTIZE, REAL, set_grid
from exactq.numerics.formats import INT32, Grid
from exactq.quantization.bias import bias_codes, product
from exactq.traces import Program, Step, walk
from exactq.training.simulated import Simulated, simulated, source_of
from exactq.training.simulation import Method, Passed, Simulation, Start, State
from exactq.training.straight_through import straight_through

Lower = Callable[[Graph], Program]
"""A target's emulator of a Q/DQ graph, on the instruction set of the plan."""


def exact(start: Start, lower: Lower, *, gradient: Method = straight_through) -> Simulation:
    """The model as the runtime computes it, with the gradient, grids and state of another way of training.

    In a settled state its outputs are those of the deployed model's emulator, bit for bit: the runtime's, but for operators
    that the target names as not predicted. Without a gradient and values to hand out only the emulator runs.
    """
    simulation, model = gradient(start), simulated(start)

    def forward(
        state: State, inputs: Sequence[Tensor], keep: Collection[str] = (), given: Mapping[str, Tensor] | None = None
    ) -> Passed:
        whole = bool(keep or given or torch.is_grad_enabled())
        with torch.no_grad():
            program = lower(present(start, model, state.trained, simulation.grids(state)))
            if not whole:
                return Passed(walk(program, inputs), {})
            reals = _reals(program, inputs)
        return simulation.forward(state, inputs, keep, reals | dict(given or {}))

    return replace(simulation, name=f"exact, {simulation.name}", forward=forward)


def present(start: Start, model: Simulated, trained: Mapping[str, Tensor], grids: Mapping[str, Grid]) -> Graph:
    """The Q/DQ graph with the weights, biases and grids of a training as they are now, as `apply` would write them."""
    edit = Edit(start.qdq)
    for node in list(edit):
        name = edit.value(node)
        base = name.removesuffix(REAL).removesuffix(CODES)
        if node.op == "get_attr":
            if name in trained and edit.tensor(node).is_floating_point():
                edit.set_constant(node, trained[name])
        elif node.target not in QUANTIZE and node.target not in DEQUANTIZE:
            continue
        elif base in model.biases:
            bias, x, w = model.biases[base]
            scale = product(grids[x].scale, grids[w].scale).flatten().expand(trained[bias].shape).contiguous()
            edit.set_constant(node.all_input_nodes[0], bias_codes(trained[bias], scale))
            set_grid(edit, node, Grid(INT32, scale, torch.zeros_like(scale, dtype=torch.int32)))
        else:
            set_grid(edit, node, grids[source_of(start, base)])
    return edit.freeze()


def _reals(program: Program, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """What each step makes, codes decoded, by the names of the Q/DQ graph's reals."""
    found: dict[str, Tensor] = {}

    def see(step: Step, value: Tensor) -> None:
        if step.grid is not None:
            zero, scale = step.grid.zero, step.grid.scale
            found[step.name.removesuffix(CODES) + REAL] = (value.to(torch.float32) - zero).mul_(scale)
        elif isinstance(value, Tensor) and value.is_floating_point():
            found[step.name] = value

    walk(program, inputs, see)
    return found
