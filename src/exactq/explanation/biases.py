"""How is my bias quantized? For every layer: float bias, steps, codes, what rounding costs, and how far int32 reaches.

Where an engine keeps biases in float, the codes are those that int32 biases would have, and the costs what they would cost.
"""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from math import log2
from typing import Any

from torch import Tensor

from exactq.errors import UsageError, unknown
from exactq.explanation import wording
from exactq.explanation.element import float_bias
from exactq.graphs.programs import is_compute
from exactq.graphs.qdq import CODES
from exactq.kernels.anatomy import FloatBias, Held, IntegerBias, Products
from exactq.numerics.scalars import shown
from exactq.plans.plan import Fused, dynamic_layers
from exactq.quantized import Quantized
from exactq.traces import Step

INT32 = 2**31
"""What an accumulator must stay below."""


@dataclass(frozen=True)
class Channel:
    """One channel's bias: the float model's, the steps it is held on, its code, and what rounding it costs.

    `reach` is what no accumulator of the channel exceeds in magnitude: Σ|w − zw|·max|x − zx| + |code|, and where pairs saturate
    2¹⁵ for each; a bias in float is added behind it. `code` is the int32 on steps of `scale` that the engine adds, or where it
    keeps biases in float (`Layer.held`) the one that it would be; None without a bias. With `zero_weights` every weight code is
    zero, so that the bias alone makes the result.
    """

    channel: int
    bias: float | None
    scale: float | None
    code: int | None
    error: float | None
    error_lsb: float | None
    reach: int
    zero_weights: bool

    @property
    def needed(self) -> float | None:
        """The bias in steps of its scale, unrounded: beyond ±2³¹ it has no int32 code."""
        return None if self.bias is None or not self.scale else self.bias / self.scale

    @property
    def headroom(self) -> float:
        """How many bits lie between `reach` and the end of int32; negative where an overflow is possible."""
        return 31 - log2(max(1, self.reach))

    @property
    def share(self) -> float:
        """`reach` as a share of int32's range; at 1 and above an overflow is possible."""
        return self.reach / INT32

    def to_json(self) -> dict[str, Any]:
        """The channel as plain data."""
        facts = asdict(self) | {"headroom_bits": self.headroom, "int32_share": self.share, "overflow": self.share >= 1}
        return {key: wording.plain(value) for key, value in facts.items()}


@dataclass(frozen=True)
class Layer:
    """The biases of the kernel that makes the codes of `made`; `node` is its convolution or linear layer.

    `held` says how: `int32`, `float32`, or None without a bias; codes of `float32` biases are not used by the engine. `lsb` is
    one step of the output's grid.
    """

    node: str
    made: str
    held: Held | None
    lsb: float
    channels: tuple[Channel, ...]

    @property
    def worst(self) -> Channel:
        """The channel whose bias loses most as int32, the first of equals."""
        return max(self.channels, key=lambda c: abs(c.error or 0.0))

    @property
    def tightest(self) -> Channel:
        """The channel with the least headroom."""
        return max(self.channels, key=lambda c: c.reach)

    @property
    def zero_weights(self) -> tuple[int, ...]:
        """The channels whose weight codes are all zero."""
        return tuple(c.channel for c in self.channels if c.zero_weights)

    def to_json(self) -> dict[str, Any]:
        """The layer as plain data."""
        return {
            "node": self.node,
            "made": self.made,
            "held": self.held,
            "lsb": self.lsb,
            "worst": self.worst.channel,
            "tightest": self.tightest.channel,
            "overflow": [c.channel for c in self.channels if c.share >= 1],
            "zero_weights": list(self.zero_weights),
            "channels": [c.to_json() for c in self.channels],
        }


@dataclass(frozen=True)
class Biases:
    """The biases of all layers in order, and of each layer that stays float the reason."""

    target: str
    layers: tuple[Layer, ...]
    floats: dict[str, str]

    def __str__(self) -> str:
        one = len(self.layers) == 1 and not self.floats
        return "\n".join(_channels(self.layers[0]) if one else _summary(self))

    def to_json(self) -> dict[str, Any]:
        """The biases as plain data."""
        return {"target": self.target, "layers": [layer.to_json() for layer in self.layers], "float": self.floats}


def explain_biases(quantized: Quantized, node: str | None = None, *, isa: str | None = None) -> Biases:
    """How the bias of every layer is held, or that of the layer `node` alone.

    Raises `UsageError` for a name that is no layer, and for one that stays float, with the reason.
    """
    if isa is not None and isa not in quantized.target.isas:
        raise unknown(f"instruction set of {quantized.target.name}", isa, quantized.target.isas)
    graph, steps = quantized.float_graph, quantized.program(isa).steps
    named = {graph.name(n) for n in graph.calls if is_compute(n)}
    layers = tuple(
        made for step in steps if isinstance(step.anatomy, Products) and (made := _layer(quantized, step, step.anatomy, named))
    )
    done = {layer.node for layer in layers}
    floats = {
        graph.name(n): _reason(quantized, graph.name(n)) for n in graph.calls if is_compute(n) and graph.name(n) not in done
    }
    target = f"{quantized.target.name}@{isa or quantized.plan.isa}"
    if node is None:
        return Biases(target, layers, floats)
    if node in floats:
        raise UsageError(f"`{node}` stays float, its bias too: {floats[node]}")
    chosen = tuple(layer for layer in layers if node in (layer.node, layer.made))
    if not chosen:
        raise unknown("layer with a bias", node, {*done, *floats})
    return Biases(target, chosen, {})


def _reason(quantized: Quantized, node: str) -> str:
    """Why a layer runs in float: the plan's reason, unless the plan says that it is fused and the lowering could not."""
    slot = quantized.plan.slots[node]
    if node in dynamic_layers(quantized.plan):
        return "it encodes its input at run time, and adds the bias to the reals that it makes"
    return f"it does not fuse into the kernel of `{slot.into}`" if isinstance(slot, Fused) else slot.reason


def _layer(quantized: Quantized, step: Step, anatomy: Products, named: set[str]) -> Layer | None:
    if anatomy.weight is None or step.grid is None:
        return None
    weight = anatomy.weight.flatten(1).long() - anatomy.w.zero.reshape(-1, 1)
    lo, hi = (end - int(anatomy.x.zero) for end in (anatomy.x.format.lo, anatomy.x.format.hi))
    reach = weight.abs().sum(1) * max(-lo, hi)
    if anatomy.pairs is not None:
        reach = reach + (weight.shape[1] + 1) // 2 * 2**15
    bias, lsb = float_bias(quantized.float_graph, step), float(step.grid.scale)
    held, codes, scale = _held(anatomy, len(weight))
    if codes is not None and held == "int32":
        reach = reach + codes.long().abs()
    real = None if bias is None else bias.flatten().double()
    error = None if codes is None or scale is None or real is None else codes.double() * scale.double() - real
    channels = tuple(
        Channel(
            channel=i,
            bias=None if real is None else float(real[i]),
            scale=None if scale is None else float(scale[i]),
            code=None if codes is None else int(codes[i]),
            error=None if error is None else float(error[i]),
            error_lsb=None if error is None else float(error[i]) / lsb,
            reach=int(reach[i]),
            zero_weights=not bool(weight[i].any()),
        )
        for i in range(len(weight))
    )
    name = next((n for n in step.covers if n in named), step.covers[0])
    return Layer(name, step.name.removesuffix(CODES), held, lsb, channels)


def _held(anatomy: Products, channels: int) -> tuple[Held | None, Tensor | None, Tensor | None]:
    """How a bias is held, its codes or those that it would have, and their steps, one a channel."""
    match anatomy.bias:
        case IntegerBias(codes, scale):
            return "int32", codes.flatten(), scale.flatten().expand(channels)
        case FloatBias(values, scale):
            steps = scale.flatten().expand(channels)
            codes = (values.flatten().double() / steps.double()).nan_to_num(nan=0.0).round().clamp(-INT32, INT32 - 1)
            return "float32", codes.long(), steps
        case None:
            return None, None, None


COLUMNS = ("channel", "bias", "steps of", "code", "costs", "in LSB", "bits left")
BRIEF = ("channel", "bias", "code", "in LSB", "bits left")
"""What fits beside the name of a layer."""


def _summary(biases: Biases) -> list[str]:
    rows = []
    for layer in biases.layers:
        cells = _cells(layer, layer.worst) | {"bits left": f"{layer.tightest.headroom:.1f}"}
        rows.append([_short(layer.node), *(cells[name] for name in BRIEF)])
    floating = any(layer.held == "float32" for layer in biases.layers)
    head = f"{biases.target}: of each layer the bias that loses most by rounding, and the fewest bits left in int32"
    if floating:
        head = (
            f"{biases.target} keeps biases in float32 and rounds none: of each layer the one that would lose most as int32, "
            "and the fewest bits left in the int32 of the products"
        )
    lines = [*textwrap.wrap(head, 80), ""]
    notes = [note for layer in biases.layers for note in _notes(layer)]
    notes += [f"{name} stays float, its bias too: {reason}" for name, reason in biases.floats.items()]
    return [*lines, *wording.table(("layer", *BRIEF), rows), *_told(notes)]


def _channels(layer: Layer) -> list[str]:
    rows = [[cells[name] for name in COLUMNS] for cells in (_cells(layer, channel) for channel in layer.channels)]
    held = f"{layer.held} biases" if layer.held else "no bias"
    held += " (codes and costs are what int32 would have)" if layer.held == "float32" else ""
    lines = [*textwrap.wrap(f"{layer.node}: {len(rows)} channels, {held}; one LSB of {layer.made} is {layer.lsb:.6g}", 80), ""]
    return [*lines, *wording.table(COLUMNS, rows), *_told(_notes(layer))]


def _cells(layer: Layer, channel: Channel) -> dict[str, str]:
    """The channel's numbers by column."""
    numbers = (channel.bias, channel.scale, channel.code, channel.error, channel.error_lsb)
    told = ["" if n is None else str(n) if isinstance(n, int) else f"{n:.3g}" for n in numbers]
    cells = dict(zip(COLUMNS, [str(channel.channel), *told, f"{channel.headroom:.1f}"], strict=True))
    return cells if layer.held else cells | {"bias": "none"}


def _notes(layer: Layer) -> list[str]:
    notes = []
    if wide := [c for c in layer.channels if c.share >= 1]:
        notes.append(
            f"{layer.node}: the accumulator can leave int32 and wrap in {len(wide)} channels, first {wide[0].channel}: "
            f"up to {wide[0].reach}"
        )
    if far := [c for c in layer.channels if c.needed is not None and not -INT32 - 0.5 <= c.needed < INT32 - 0.5]:
        fate = "would be" if layer.held == "float32" else "is"
        notes.append(
            f"{layer.node}: the bias of {len(far)} channels, first {far[0].channel}, needs a code beyond int32 "
            f"({far[0].needed:.4g}); {'as int32 it ' if layer.held == 'float32' else 'it '}{fate} {far[0].code}"
        )
    if zeros := layer.zero_weights:
        first = layer.channels[zeros[0]]
        coded = layer.held == "int32" and first.scale is not None
        held = f"; its bias is code {first.code} · {shown(first.scale or 0.0)}" if coded else ""
        some = ", ".join(map(str, zeros[:5])) + (" …" if len(zeros) > 5 else "")
        notes.append(f"{layer.node}: all weight codes of {len(zeros)} channels ({some}) are zero: no input changes them{held}")
    return notes


def _told(notes: list[str]) -> list[str]:
    return ["", *(line for note in notes for line in wording.paragraph("note", note))] if notes else []


def _short(name: str, width: int = 30) -> str:
    """The name, or its end where it is long: the end tells layers apart."""
    return name if len(name) <= width else f"…{name[1 - width :]}"
