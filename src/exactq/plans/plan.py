"""A plan: for every value of a graph, on which grid it lives, and why. Frozen, printable, a YAML file one can edit.

Slots are alternatives, each a type of its own; each carries its reason in a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from exactq.errors import UsageError, unknown
from exactq.numerics.formats import Format


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""


@dataclass(frozen=True)
class PerChannel:
    """One scale for each index of `axis`."""

    axis: int = 0

    def __post_init__(self) -> None:
        if self.axis < 0:
            raise UsageError(f"axis is {self.axis}; axes are counted from 0")


Granularity = PerTensor | PerChannel


@dataclass(frozen=True)
class Own:
    """Codes on a grid of the value's own, whose range `observer` finds."""

    format: Format
    observer: str
    reason: str
    per: Granularity = PerTensor()
    symmetric: bool = False


@dataclass(frozen=True)
class Same:
    """Codes on the grid of another value: the operator moves or selects codes and makes no new ones."""

    of: str
    reason: str


@dataclass(frozen=True)
class Product:
    """Codes on the grid whose scale is the product of two others' and whose zero is 0: a bias, added to the accumulator."""

    of: tuple[str, str]
    format: Format
    reason: str


@dataclass(frozen=True)
class Fixed:
    """Codes on a grid that is given: by an operator's definition, by a file, or by the user."""

    format: Format
    scale: float
    zero: int
    reason: str

    def __post_init__(self) -> None:
        if not 2.0**-126 <= self.scale <= 2.0**126:  # NaN fails too
            raise UsageError(f"the scale is {self.scale}; it needs a positive float32 within 2^±126")
        if not self.format.lo <= self.zero <= self.format.hi:
            raise UsageError(f"the zero {self.zero} is no code of {self.format!r}: reals would lose their zero")


@dataclass(frozen=True)
class FixedChannels:
    """Codes on given grids, one for each index of `axis`: weights that somebody else quantized."""

    format: Format
    scales: tuple[float, ...]
    zeros: tuple[int, ...]
    axis: int
    reason: str

    def __post_init__(self) -> None:
        if not self.scales or not all(2.0**-126 <= scale <= 2.0**126 for scale in self.scales):
            raise UsageError(f"the scales are {self.scales[:4]}; each has to be a positive float32 within 2^±126")
        if len(self.zeros) != len(self.scales):
            raise UsageError(f"{len(self.scales)} scales and {len(self.zeros)} zeros: each channel has one of each")
        if bad := [zero for zero in self.zeros if not self.format.lo <= zero <= self.format.hi]:
            raise UsageError(f"the zero {bad[0]} is no code of {self.format!r}: reals would lose their zero")


@dataclass(frozen=True)
class Dynamic:
    """An edge whose reader makes codes of the reals by itself, on a grid that it lays over the tensor when it sees it.

    With `reduce_range` the range gets the lower half of the codes.
    """

    format: Format
    reason: str
    reduce_range: bool = False


@dataclass(frozen=True)
class Fused:
    """No codes: the value exists only in the accumulator of the kernel that makes `into`."""

    into: str
    reason: str


@dataclass(frozen=True)
class Float:
    """Real numbers, and the reason why."""

    reason: str


Slot = Own | Same | Product | Fixed | FixedChannels | Dynamic | Fused | Float


@dataclass(frozen=True)
class Edge:
    """One reader of a value: `user` reads `value` on a grid of its own.

    A bias that two layers share has an edge for the second, for it lives on the grid of each one's products.
    """

    value: str
    user: str

    def __str__(self) -> str:
        return f"{self.value}@{self.user}"


@dataclass(frozen=True)
class Plan:
    """A slot for every value and, where one reader needs another grid, for an edge.

    `target` and `isa` say for which kernels it was made, `recipe` from which wishes. Raises `UsageError` for lines that speak
    of values without a line, and for circles.
    """

    target: str
    isa: str
    recipe: str
    slots: Mapping[str, Slot]
    edges: Mapping[Edge, Slot] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, slot in [*self.slots.items(), *((str(edge), slot) for edge, slot in self.edges.items())]:
            for name in references(slot):
                if name not in self.slots:
                    raise unknown(f"value in the plan's line for `{what}`", name, self.slots)
        for edge in self.edges:
            for name in (edge.value, edge.user):
                if name not in self.slots:
                    raise unknown(f"value in the plan's edge `{edge.value} -> {edge.user}`", name, self.slots)
        for name in self.slots:
            self.source(name)

    def source(self, name: str) -> str:
        """The value whose grid `name` lives on: itself, or the end of its chain of `Same`; a circle is a `UsageError`."""
        seen = [name]
        while isinstance(slot := self.slots[seen[-1]], Same):
            if slot.of in seen:
                circle = " -> ".join([*seen, slot.of])
                raise UsageError(f"the plan's lines {circle} go in a circle: one of them needs a grid of its own")
            seen.append(slot.of)
        return seen[-1]

    def quantized(self, name: str) -> bool:
        """Whether the value exists as codes."""
        return isinstance(self.slots[self.source(name)], Own | Fixed | FixedChannels | Product)

    def read(self, value: str, user: str) -> Slot:
        """The slot on which `user` reads `value`: the edge's where there is one, else that at the end of the `Same` chain."""
        return self.edges.get(Edge(value, user), self.slots[self.source(value)])


def dynamic_layers(plan: Plan) -> tuple[str, ...]:
    """The layers that lay a grid over their input at run time."""
    return tuple(edge.user for edge, slot in plan.edges.items() if isinstance(slot, Dynamic))


def references(slot: Slot) -> tuple[str, ...]:
    """The values that a slot speaks of."""
    match slot:
        case Same(of):
            return (of,)
        case Product(of):
            return of
        case Fused(into):
            return (into,)
        case _:
            return ()


def summary(slot: Slot) -> tuple[str, str, str]:
    """Format, granularity and observer of a slot, each a short text, for tables.

    >>> from exactq.numerics.formats import INT8
    >>> summary(Own(INT8.narrow, "minmax", "…", PerChannel(0)))
    ('int8 -127..127', 'channel 0', 'minmax')
    """
    match slot:
        case Own(fmt, observer, _, per):
            return _range(fmt), "tensor" if isinstance(per, PerTensor) else f"channel {per.axis}", observer
        case Same(of):
            return "same", f"as {of}", ""
        case Product((a, b), fmt):
            return _range(fmt), f"{a} × {b}", ""
        case Fixed(fmt, scale, zero):
            return _range(fmt), f"scale {scale:g}, zero {zero}", "given"
        case FixedChannels(fmt, scales, _, axis):
            return _range(fmt), f"channel {axis}, scales {min(scales):g}..{max(scales):g}", "given"
        case Dynamic(fmt, _, reduced):
            return f"{fmt.name} {fmt.lo}..{fmt.hi // 2 if reduced else fmt.hi}", "tensor", "at run time"
        case Fused(into):
            return "accumulator", f"of {into}", ""
        case Float():
            return "float32", "", ""


def _range(fmt: Format) -> str:
    return fmt.name if fmt.bits == 32 else f"{fmt.name} {fmt.lo}..{fmt.hi}"
