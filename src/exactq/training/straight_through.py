"""Fake quantization with the straight-through estimator, on exactly the grids that the deployed model has.

Forward, for activations and weights: y = s·clamp(rint(x/s), lo − z, hi − z), the bits of `Grid.decode(Grid.encode(x))`; for
biases y = sb·rint(b/sb) with sb = fl(sx·sw). Backward, as if rounding were not there: dy/dx = 1 where rint(x/s) + z is a code,
0 where it was clamped (Bengio et al. 2013, arXiv 1308.3432; Jacob et al. 2018, arXiv 1712.05877).

`x + (y - x).detach()`, as often written, rounds twice and misses y by an ulp here and there; here the value is y itself.
PyTorch's own fake quantization multiplies by 1/s, which puts ties elsewhere than the runtimes' division.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from exactq.calibration import observer_named
from exactq.errors import DataError, ModelError, UsageError
from exactq.graphs.graph import Graph, arguments, op_name
from exactq.graphs.programs import bind
from exactq.graphs.qdq import CODES, DEQUANTIZE, QUANTIZE, REAL, read_quantize
from exactq.numerics.formats import Grid, expand
from exactq.plans.plan import Own, PerChannel, Slot
from exactq.quantization.bias import bias_codes, guard, product
from exactq.quantization.ranges import grid
from exactq.quantization.weights import weight_grid
from exactq.traces import Program, Step, walk
from exactq.training.simulation import Finished, Passed, Simulation, Start, State

GRID, SCALE, RANGE = "/grid", "/scale", "/range"
REFRESH = 50
"""Steps between two searches for the scales of weights whose observer searches (`mse`, `pairsafe`): a search can take longer
than a training step. In between the scales stand; `minmax` grids follow every step."""


class _StraightThrough(torch.autograd.Function):
    """y in place of x; the gradient passes where `inside`, and is 0 elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, inside: Tensor) -> Tensor:
        ctx.save_for_backward(inside)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None, None


def fake_quantize(x: Tensor, at: Grid) -> Tensor:
    """The reals of the codes of float32 `x`, the bits of `at.decode(at.encode(x))`, for formats of up to 16 bits.

    NaN stays NaN, where `encode` gives the lowest code: training must see it.

    >>> from exactq.numerics.formats import UINT2
    >>> x = torch.tensor([0.25, 0.75, 9.0], requires_grad=True)
    >>> y = fake_quantize(x, grid(0.0, 1.5, UINT2))
    >>> y.sum().backward()
    >>> y.tolist(), x.grad.tolist()
    ([0.0, 1.0, 1.5], [1.0, 1.0, 0.0])
    """
    if at.format.bits > 16:
        raise ModelError(f"fake quantization in {at.format!r}: float32 tells at most 16-bit codes apart")
    with torch.no_grad():
        scale = expand(at.scale, x.shape)
        lo, hi = _bounds(at, x.shape)
        wanted = torch.round(x.detach() / scale)
        steps = torch.clamp(wanted, lo, hi)
        inside = wanted == steps
        y = steps.add_(0.0).mul_(scale)  # codes know no −0
    return _passed(x, y, inside)


def _bounds(at: Grid, shape: Sequence[int]) -> tuple[Any, Any]:
    """The lowest and the highest code less the zero: numbers for one zero, tensors otherwise."""
    if at.zero.numel() == 1:
        return at.format.lo - int(at.zero), at.format.hi - int(at.zero)
    zero = expand(at.zero, shape)
    return (at.format.lo - zero).float(), (at.format.hi - zero).float()


def fake_quantize_bias(bias: Tensor, x: Grid, w: Grid) -> Tensor:
    """The reals of the int32 codes (C,) of a bias on the grid of the products of `x` and `w`; nothing is clamped."""
    with torch.no_grad():
        scale = product(x.scale, w.scale).flatten()
        y = bias_codes(bias, scale).to(torch.float32) * scale
    return _passed(bias, y, torch.ones((), dtype=torch.bool))


def _passed(x: Tensor, y: Tensor, inside: Tensor) -> Tensor:
    return _StraightThrough.apply(x, y, inside)


@dataclass(frozen=True)
class _Weight:
    """A weight that lives as codes: its line of the plan, the groups of its layers, and (bias, input's grid) of each bias."""

    slot: Slot
    given: Grid
    groups: int
    biases: tuple[tuple[str, str], ...]

    @property
    def searched(self) -> bool:
        """Whether finding its grid takes a search."""
        return isinstance(self.slot, Own) and self.slot.observer != "minmax"


@dataclass(frozen=True)
class _Model:
    """The program, and what its grids are made of: weights by name, activations by name -> their line of the plan."""

    program: Program
    weights: Mapping[str, _Weight]
    activations: Mapping[str, Slot]


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
    model = _model(start)
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
        grids = activation_grids(state)
        with torch.no_grad():
            for name, weight in model.weights.items():
                scale = state.kept.get(name + SCALE)
                grids[name] = (
                    _weight_grid(name, weight, state.trained, grids)
                    if scale is None
                    else Grid(weight.given.format, scale, torch.zeros_like(scale, dtype=torch.int32))
                )
        return grids

    def forward(state: State, inputs: Sequence[Tensor], keep: Collection[str] = ()) -> Passed:
        grids = all_grids(state)
        kept: dict[str, Tensor] = {}
        values: list[Any] = [*inputs, *state.trained.values(), *grids.values()]
        kept |= {name: value for name, value in zip(model.program.inputs, values, strict=True) if name in keep}

        def see(step: Step, value: Tensor) -> None:
            if step.name in keep:
                kept[step.name] = value

        return Passed(walk(model.program, values, see), kept)

    def advance(state: State, values: Mapping[str, Tensor], step: int, share: float) -> State:
        kept = dict(state.kept)
        if ranges is not None and share <= ranges.until:
            for name, slot in moving.items():
                before = kept[name + RANGE]
                kept[name + RANGE] = before + (1 - ranges.decay) * (_seen(values[_value(name)], slot, name) - before)
        moved = State(state.trained, kept)
        return settle(moved) if step % refresh == 0 else moved

    def settle(state: State) -> State:
        grids = activation_grids(state)
        with torch.no_grad():
            scales = {n + SCALE: _weight_grid(n, w, state.trained, grids).scale for n, w in model.weights.items() if w.searched}
        return State(state.trained, state.kept | scales)

    def units(state: State) -> dict[str, float]:
        """A weight's mean grid step. The rest takes the same share of its size (root mean square) as the median weight does."""
        grids = all_grids(state)
        sizes = {name: float(tensor.detach().double().square().mean().sqrt()) for name, tensor in state.trained.items()}
        steps = {name: float(grids[name].scale.double().mean()) for name in model.weights}
        share = _median([steps[name] / sizes[name] for name in steps if sizes[name]])
        size = _median([size for size in sizes.values() if size])
        return {name: share * (sizes[name] or size) for name in sizes} | steps

    def finish(state: State) -> Finished:
        return Finished({name: value.detach().clone() for name, value in state.trained.items()}, activation_grids(state))

    return Simulation(begin, forward, advance, settle, units, finish, frozenset(map(_value, moving)))


def _median(numbers: list[float]) -> float:
    """The upper median, 1 of nothing."""
    return sorted(numbers)[len(numbers) // 2] if numbers else 1.0


def _model(start: Start) -> _Model:
    """The Q/DQ graph as a program of reals: inputs are the graph's, the trained constants, then the grids."""
    graph = start.qdq
    weights = {_base(graph, node): weight for node in graph.calls if (weight := _weight(start, node)) is not None}
    activations: dict[str, Slot] = {}
    for node in graph.calls:
        if (q := read_quantize(graph, node)) is not None and q.source.op != "get_attr":
            name = _source(start, _base(graph, node))
            activations[name] = _line(start, name)
    steps = tuple(_steps(start, weights))
    grids = (name + GRID for name in (*activations, *weights))
    return _Model(
        Program((*(i.name for i in graph.inputs), *start.trained, *grids), steps, graph.outputs), weights, activations
    )


def _steps(start: Start, weights: Mapping[str, _Weight]) -> Iterator[Step]:
    graph = start.qdq
    for node in graph.calls:
        name = graph.name(node)
        if node.target in QUANTIZE:
            continue  # its dequantize node does both
        if node.target not in DEQUANTIZE:
            run, reads = bind(graph, node, start.trained)
            yield Step(name, run, reads, op_name(node))
            continue
        base, source = name.removesuffix(REAL), node.all_input_nodes[0]
        if source.op == "get_attr":
            x, w = _products(start, node)
            yield Step(name, fake_quantize_bias, (_float_name(start, base), x + GRID, w + GRID), "bias")
        elif base in weights:
            yield Step(name, fake_quantize, (base, base + GRID), "weight")
        else:
            read = graph.name(source.all_input_nodes[0])
            yield Step(name, fake_quantize, (read, _source(start, base) + GRID), "activation")


def _weight(start: Start, node: fx.Node) -> _Weight | None:
    """What a weight's quantize node stands for; None for any other node."""
    graph, q = start.qdq, read_quantize(start.qdq, node)
    if q is None or q.source.op != "get_attr":
        return None
    name = _base(graph, node)
    if name not in start.trained:
        raise ModelError(f"`{name}` lives as codes, but the float model has no float weights of that name to train")
    layers = [reader for real in node.users for reader in real.users]
    biases = [arguments(layer).get("bias") for layer in layers]
    held = [
        (_float_name(start, graph.name(bias).removesuffix(REAL)), _products(start, bias)[0])
        for bias in biases
        if isinstance(bias, fx.Node) and bias.target in DEQUANTIZE
    ]
    groups = [int(arguments(layer).get("groups", 1)) for layer in layers if "weight" in arguments(layer)]
    return _Weight(start.plan.slots[name], q.grid, min(groups, default=1), tuple(dict.fromkeys(held)))


def _products(start: Start, bias: fx.Node) -> tuple[str, str]:
    """The values on whose grids a bias's layer reads its input and its weight: any of its layers, all give one product."""
    graph, layer = start.qdq, next(iter(bias.users))
    x, w = (graph.name(n).removesuffix(REAL) for n in layer.all_input_nodes[:2])
    return _source(start, x), w


def _weight_grid(name: str, weight: _Weight, trained: Mapping[str, Tensor], grids: Mapping[str, Grid]) -> Grid:
    """The grid of a weight as it is now, with the arithmetic of `quantization.apply`."""
    slot, value = weight.slot, trained[name]
    if not isinstance(slot, Own):
        return weight.given
    axis = slot.per.axis if isinstance(slot.per, PerChannel) else None

    def find(floor: Tensor | None) -> Grid:
        return weight_grid(value, slot.format, axis, observer=slot.observer, groups=weight.groups, floor=floor)

    made = find(None)
    for bias, x in weight.biases:
        held, raised = guard(trained[bias], grids[x].scale, made)
        if raised:
            made = find(held.scale)
    return made


def _base(graph: Graph, node: fx.Node) -> str:
    return graph.name(node).removesuffix(CODES)


def _source(start: Start, name: str) -> str:
    """The value or edge whose grid `name` has."""
    return start.plan.source(name) if name in start.plan.slots else name


def _line(start: Start, name: str) -> Slot:
    """The plan's line for a value, or for an edge written `value@reader`."""
    lines: dict[str, Slot] = {str(edge): slot for edge, slot in start.plan.edges.items()} | dict(start.plan.slots)
    return lines[name]


def _float_name(start: Start, name: str) -> str:
    """The constant of the float graph that `name`, or the `bias` of `bias@layer`, is."""
    found = name if name in start.trained else name.rpartition("@")[0]
    if found not in start.trained:
        raise ModelError(f"`{name}` lives as codes, but the float model has no float constant of that name to train")
    return found


def _value(name: str) -> str:
    """The value that is read on the grid `name`."""
    return name.rpartition("@")[0] or name


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
