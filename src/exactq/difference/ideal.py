"""Two executions as one arithmetic whose parts can be taken from either: exact reals, rounded only where one of them rounds.

A value is computed in float64 from what its operands decode to; a layer's sum of products is exact in integers. Parts are laid
over it, each as the one side has it or as the other: grids of weights and of activations, what saturating pairs add, whether
the bias is rounded to int32, whether the zero is added before the rounding, and where codes end. With all parts of one side it
is that side but for the last bits of its float32 arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from exactq.difference.causes import Cause
from exactq.difference.sides import ACTIVATIONS, Side, decoded, encoded, is_constant, operators, real
from exactq.errors import DataError
from exactq.graphs.graph import arguments, op_name
from exactq.kernels import sums
from exactq.kernels.accumulators import per_axis
from exactq.kernels.aten import dynamic_grid
from exactq.numerics.formats import Format, Grid
from exactq.numerics.rounding import wrap_int32

PARTS = (
    Cause.WEIGHTS,
    Cause.ACTIVATIONS,
    Cause.FLOAT,
    Cause.SUM,
    Cause.PAIRS,
    Cause.RANGE,
    Cause.ACTIVATION,
    Cause.ZERO,
    Cause.BIAS,
    Cause.OVERFLOW,
)
"""The parts that can be taken from one side or the other, each under the name of the cause that it is."""

Parts = Collection[Cause]
"""The parts that come from the second side."""


@dataclass(frozen=True, eq=False)
class Ideal:
    """Both sides, and the operators of the model, which they share. Raises `DataError` for models that are not the same."""

    a: Side
    b: Side
    nodes: Mapping[str, fx.Node]
    _sums: dict[tuple[str, bool, int, int], sums.Sums] = field(default_factory=dict)

    def pick(self, part: Cause, parts: Parts) -> Side:
        """The side that a part comes from."""
        return self.b if part in parts else self.a

    def joined(self, key: str) -> bool:
        """Whether a side has no codes of a key because its kernel adds to the sum at once."""
        return key in self.a.joined or key in self.b.joined

    def value(self, key: str) -> str:
        """The value that is encoded under a key."""
        return self.a.values.get(key) or self.b.values.get(key) or key

    def layer(self, key: str) -> str | None:
        """The layer with weights that makes a key's value, activations behind it or not; None for anything else."""
        name = self.value(key)
        while name in self.nodes and op_name(self.nodes[name]) in ACTIVATIONS:
            name = self.a.graph.name(_operand(self, self.nodes[name]))
        return name if name in self.a.weights else None

    def grid(self, key: str, parts: Parts) -> Grid | None:
        """The grid that a key has with these parts; None where the value stays real."""
        first, second = self.a.grids.get(key), self.b.grids.get(key)
        if first is None or second is None:
            return self.pick(Cause.SUM if self.joined(key) else Cause.FLOAT, parts).grids.get(key)
        if not same_steps(first, second):
            return second if Cause.ACTIVATIONS in parts else first
        if first.format == second.format:
            return first
        return second if Cause.RANGE in parts else first


def ideal(a: Side, b: Side) -> Ideal:
    """The two sides as one arithmetic."""
    first, second = operators(a.graph), operators(b.graph)
    for name in first.keys() ^ second.keys():
        where = "first" if name in first else "second"
        raise DataError(f"these are different models: `{name}` is in the {where} one alone")
    for name, node in first.items():
        if op_name(node) != op_name(second[name]):
            kinds = f"{op_name(node)} in one and {op_name(second[name])} in the other"
            raise DataError(f"these are different models: `{name}` is {kinds}")
    for one, other in zip(a.graph.inputs, b.graph.inputs, strict=False):
        if (one.name, one.shape[1:]) != (other.name, other.shape[1:]):
            raise DataError(f"these models take different inputs: `{one.name}` {one.shape} and `{other.name}` {other.shape}")
    if len(a.graph.inputs) != len(b.graph.inputs):
        raise DataError(f"these models take different inputs: {len(a.graph.inputs)} and {len(b.graph.inputs)} of them")
    return Ideal(a, b, first)


def same_steps(first: Grid, second: Grid) -> bool:
    """Whether two grids have the same reals, but for where they end; codes may be shifted as int8 and uint8 are."""
    return (
        first.scale.numel() == second.scale.numel() == 1
        and bool(first.scale == second.scale)
        and int(first.zero) - _origin(first.format) == int(second.zero) - _origin(second.format)
    )


def _origin(fmt: Format) -> int:
    """The lowest code of the storage, from which a shift is counted."""
    return -(2 ** (fmt.bits - 1)) if fmt.signed else 0


@dataclass(frozen=True, eq=False)
class Found:
    """What a key's value is: `steps` away from the zero before rounding (None where it stays real), and the real it becomes."""

    steps: Tensor | None
    real: Tensor


@dataclass(frozen=True, eq=False)
class Known:
    """What an evaluation starts from: the inputs by name, and the keys whose values are given; float64 reals."""

    inputs: Mapping[str, Tensor]
    keys: dict[str, Tensor]


def evaluate(ideal: Ideal, keys: Sequence[str], known: Known, parts: Parts) -> dict[str, Found]:
    """Each key's value with these parts from the second side, from what is known."""
    return _Walk(ideal, known, frozenset(parts)).all(keys)


def magnitude(ideal: Ideal, key: str, known: Known) -> Tensor | None:
    """Σ|x·w| + |b| of the one layer that makes `key` from what is given, times the terms of a sum; None for anything else.

    No order of float32 sums is farther from the exact one than 2⁻²⁴ of it (Higham 2002, section 4.2).
    """
    layer = ideal.layer(key)
    if layer is None:
        return None
    node, weight = ideal.nodes[layer], ideal.a.weights[layer]
    x = _Walk(ideal, known, frozenset()).read(layer, _operand(ideal, node))
    bias = ideal.a.biases.get(layer)
    total = _linear(node)(x.abs().float(), weight.reals.abs().float(), None if bias is None else bias.abs().float())
    return total.double() * (weight.values[0].numel() + 2)


class _Walk:
    """One evaluation: what is computed is kept by name."""

    def __init__(self, ideal: Ideal, known: Known, parts: frozenset[Cause]) -> None:
        self.ideal, self.entries, self.given, self.parts = ideal, known.inputs, known.keys, parts
        self.made: dict[str, Tensor] = {}
        self.graph = ideal.a.graph

    def all(self, keys: Sequence[str]) -> dict[str, Found]:
        return {key: self.found(key) for key in keys}

    def found(self, key: str) -> Found:
        value = self.value(self.ideal.value(key))
        grid = self.ideal.grid(key, self.parts)
        if grid is None:
            return Found(None, value)
        steps = value / grid.scale.double()
        return Found(steps, decoded(self.rounded(key, steps, grid), grid))

    def rounded(self, key: str, steps: Tensor, grid: Grid) -> Tensor:
        zero = float(grid.zero)
        inside = key in self.ideal.pick(Cause.ZERO, self.parts).inside
        codes = torch.round(steps + zero) if inside else torch.round(steps) + zero
        return codes.nan_to_num(nan=grid.format.lo).clamp(grid.format.lo, grid.format.hi)

    def read(self, reader: str, operand: fx.Node) -> Tensor:
        """The reals that an operator reads of an operand, on the grid that its key has there, or that it lays over them."""
        value, side = self.handed(reader, operand), self.ideal.pick(Cause.FLOAT, self.parts)
        if reader not in side.dynamic:
            return value
        grid = dynamic_grid(value.float(), reduce_range=side.dynamic[reader])
        return decoded(encoded(value, grid), grid)

    def handed(self, reader: str, operand: fx.Node) -> Tensor:
        """The reals of an operand on the grid that its key has there."""
        name, key = self.key(reader, operand)
        if key in self.given:
            grid = self.ideal.grid(key, self.parts)
            return self.given[key] if grid is None else self.onto(key, self.given[key], grid)
        if key == name and self.ideal.grid(key, self.parts) is None:
            return self.value(name)
        return self.found(key).real

    def onto(self, key: str, value: Tensor, grid: Grid) -> Tensor:
        return decoded(self.rounded(key, value / grid.scale.double(), grid), grid)

    def key(self, reader: str, operand: fx.Node) -> tuple[str, str]:
        """The value behind an operand, and the key by which it is read."""
        while op_name(operand).startswith("quantized_decomposed."):
            operand = operand.all_input_nodes[0]
        name = self.graph.name(operand)
        for part in (self.ideal.pick(Cause.ACTIVATIONS, self.parts), self.ideal.a, self.ideal.b):
            if (reader, name) in part.reads:
                return name, part.reads[reader, name]
        return name, name

    def value(self, name: str) -> Tensor:
        """The reals of a value before any rounding to codes."""
        if name not in self.made:
            node = self.ideal.nodes.get(name)
            self.made[name] = self.entries[name] if node is None else self.computed(name, node)
        return self.made[name]

    def computed(self, name: str, node: fx.Node) -> Tensor:
        if name in self.ideal.a.weights:
            return self.layer(name, node)
        if self.fused(name):
            return self.read(name, _operand(self.ideal, node))

        def argument(operand: fx.Node) -> Tensor:
            return real(self.graph, operand) if is_constant(self.graph, operand) else self.read(name, operand)

        target = torch.ops.aten.reshape.default if node.target is torch.ops.aten.view.default else node.target
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), argument)
        made: Tensor = target(*args, **kwargs)  # type: ignore[operator]
        return made

    def fused(self, name: str) -> bool:
        """Whether an activation is left to the end of the grid behind it, which must be the grid of the side that does so."""
        side = self.ideal.pick(Cause.ACTIVATION, self.parts)
        mine, grid = side.grids.get(name), self.ideal.grid(name, self.parts)
        return name in side.fused and mine is not None and grid is not None and mine.same_as(grid)

    def layer(self, name: str, node: fx.Node) -> Tensor:
        ideal, operand = self.ideal, _operand(self.ideal, node)
        weights = ideal.pick(Cause.WEIGHTS, self.parts)
        weight = weights.weights[name]
        _, key = self.key(name, operand)
        grid, x = ideal.grid(key, self.parts), self.read(name, operand)
        shape = (-1, *[1] * (weight.values.ndim - 2))
        if weight.scale is None or grid is None:
            total, scale = _linear(node)(x, weight.reals, None), None
        else:
            centred = (x / grid.scale.double()).round_()
            total = self.sums(name, node, weight.values, grid, second=weights is ideal.b)(centred.float()).double()
            pairs = ideal.pick(Cause.PAIRS, self.parts)
            if name in pairs.pairs:
                own = pairs.grids.get(key, grid)
                codes = (x / own.scale.double()).round_().add_(float(own.zero))
                total = total + pairs.pairs[name](codes.clamp_(own.format.lo, own.format.hi))
            scale = grid.scale.double() * weight.scale
        return self.with_bias(name, total, scale, shape)

    def with_bias(self, name: str, total: Tensor, scale: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        """The reals of sums (n, out, …) with their bias: real, or rounded to int32 steps of the products."""
        bias = self.ideal.a.biases.get(name) if Cause.BIAS not in self.parts else self.ideal.b.biases.get(name)
        real_sums = total if scale is None else total * scale.reshape(shape)
        if bias is None:
            return real_sums
        sides = {part: self.ideal.pick(part, self.parts) for part in (Cause.BIAS, Cause.OVERFLOW)}
        if scale is None or not any(name in s.rounds_bias for s in sides.values()):
            return real_sums + bias.reshape(shape)
        step = scale.float().double()
        exact = bias / step
        codes = self.bias_codes(name, exact, sides[Cause.BIAS]) if name in sides[Cause.BIAS].rounds_bias else exact
        if name in sides[Cause.OVERFLOW].rounds_bias:
            codes = torch.where(codes.abs() >= 2.0**31, self.beyond(name, codes, sides[Cause.OVERFLOW]), codes)
            whole = total + codes.reshape(shape)
            return (wrap_int32(whole) if bool((whole.abs() >= 2.0**31).any()) else whole) * scale.reshape(shape)
        return (total + codes.reshape(shape)) * scale.reshape(shape)

    def beyond(self, name: str, codes: Tensor, side: Side) -> Tensor:
        """What a side makes of bias codes beyond int32: its own, or the nearest."""
        return side.bias_codes.get(name, codes).clamp(-(2.0**31), 2.0**31 - 1)

    def bias_codes(self, name: str, exact: Tensor, side: Side) -> Tensor:
        """The codes of a bias of `exact` steps; at half steps the side's own, which it had from float32 quotients."""
        own = side.bias_codes.get(name)
        return torch.round(exact) if own is None else torch.where((exact - own).abs() < 0.501, own, torch.round(exact))

    def sums(self, name: str, node: fx.Node, weight: Tensor, grid: Grid, *, second: bool) -> sums.Sums:
        """The exact sums of a layer over centred codes; kept, for splitting them takes longer than to compute them."""
        lo, hi = grid.format.lo - int(grid.zero), grid.format.hi - int(grid.zero)
        place = (name, second, lo, hi)
        if place not in self.ideal._sums:
            given, rank = arguments(node), weight.ndim - 2
            if not rank:
                self.ideal._sums[place] = sums.matrix_sums(weight, None, lo=lo, hi=hi)
            else:
                places = {n: per_axis(given[n], rank) * (2 if n == "padding" else 1) for n in ("stride", "padding", "dilation")}
                self.ideal._sums[place] = sums.convolution_sums(
                    weight, None, lo=lo, hi=hi, groups=int(given["groups"]), **places
                )
        return self.ideal._sums[place]


def _operand(ideal: Ideal, node: fx.Node) -> fx.Node:
    """The first operand that is no constant: the value itself, or what decodes its codes."""
    return next(n for n in node.all_input_nodes if not is_constant(ideal.a.graph, n))


def _linear(node: fx.Node) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The layer as a function of its input, weight and bias, in their dtype."""
    given = arguments(node)
    rank = op_name(node).removeprefix("aten.conv").removesuffix("d")
    if op_name(node) == "aten.linear":
        return F.linear
    rest = [given[n] for n in ("stride", "padding", "dilation", "groups")]
    convolve = {"1": F.conv1d, "2": F.conv2d, "3": F.conv3d}[rank]
    return lambda x, w, b: convolve(x, w, b, *rest)
