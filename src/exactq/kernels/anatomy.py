"""How one element of a kernel's result comes about, as data: what an emulator's step carries for `explain`.

Every library's kernels are functions of whole tensors; the anatomy of one says the same for a single element: which codes it
reads, which constants are prepared, and the library's own rounding as lines of plain Python. What libraries share is here:
sums of products and where their terms lie. What tells them apart (multiplier, rounding, clamp, how the bias is held) is a
function of the library, `finish` or `plain`, that returns lines; so an explanation knows no runtime by name.

An anatomy is a second, slow definition of its kernel, and the two must agree on every element.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal

from torch import Tensor

from exactq.numerics.formats import Grid
from exactq.numerics.scalars import Scalar

Place = tuple[int, ...]
"""An index into a tensor."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Line:
    """One step of an element's arithmetic: its name, a sentence with the numbers in place, and what it comes to.

    `values` are the numbers by name. `rows` are the terms where the line gathers many, each with the number `term` that counts;
    an explanation may show the largest alone.
    """

    name: str
    text: str
    value: Scalar
    values: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[Mapping[str, Any], ...] = ()


Lines = tuple[Line, ...]


@dataclass(frozen=True)
class Read:
    """One code that an element is made of: of which operand, and where; None is padding."""

    operand: int
    place: Place | None


@dataclass(frozen=True)
class Element:
    """One element of a result: where it is, what it is made of with the values of that, and the shapes of the operands."""

    at: Place
    reads: Sequence[Read]
    values: Sequence[Scalar]
    shapes: Sequence[Shape]

    @property
    def codes(self) -> tuple[int, ...]:
        """The values as codes."""
        return tuple(int(value) for value in self.values)


Held = Literal["int32", "float32"]
"""How an engine holds a bias: as codes that it adds to the int32 sum of products, or as a real behind it."""


@dataclass(frozen=True, eq=False)
class IntegerBias:
    """A bias that the engine adds to the int32 sum: codes (out,) on float32 steps (out,)."""

    codes: Tensor
    scale: Tensor


@dataclass(frozen=True, eq=False)
class FloatBias:
    """A bias (out,) that the engine keeps in float32 and adds behind the int32 sum, within `finish`.

    `scale` (out,) float32 are the steps on which it would lie as int32 codes: those of the sum.
    """

    values: Tensor
    scale: Tensor


Pairs = Callable[[Sequence[tuple[Place | None, Place]]], Iterator[tuple[int, ...]]]
"""The terms of a sum -> the positions of those whose raw products are added in saturating int16, two by two."""


@dataclass(frozen=True, eq=False)
class Products:
    """A sum of products of codes: acc = Σ (x − zx)·(w − zw) + bias, int32; then `finish(acc, channel)` down to the code.

    `weight` holds codes of `w` (out, …); None where `w` is the grid of a second operand. `terms(at, shapes)` gives the places
    of the codes that meet, in the order in which the kernel reads them; `pairs` says which of them saturate together, None that
    nothing does. `channel` is the axis of the result along which weights and bias differ. Where the kernel adds codes of
    `added` behind the sum, those of the last operand at the element's own place, `finish` takes that code third.
    """

    x: Grid
    w: Grid
    weight: Tensor | None
    bias: IntegerBias | FloatBias | None
    terms: Callable[[Place, Sequence[Shape]], Iterator[tuple[Place | None, Place]]]
    channel: int
    pairs: Pairs | None
    finish: Callable[..., Lines]
    added: Grid | None = None


@dataclass(frozen=True, eq=False)
class Function:
    """A function of a few codes or reals: `reads(at, shapes)` says which, `plain(element)` what becomes of them.

    A read of padding has the value that `outside` gives it.
    """

    reads: Callable[[Place, Sequence[Shape]], Sequence[Read]]
    plain: Callable[[Element], Lines]
    outside: Scalar = 0


@dataclass(frozen=True)
class Moved:
    """No arithmetic: each code is that of some place of the operand, or a constant in a border."""


Anatomy = Products | Function | Moved


def bounded(anatomy: Anatomy, lo: int, hi: int) -> Anatomy:
    """The anatomy of a kernel whose codes are then held within lo..hi."""

    def held(lines: Lines) -> Lines:
        code = int(lines[-1].value)
        kept = min(max(code, lo), hi)
        fate = "stays" if kept == code else f"becomes {kept}"
        return (*lines, Line("clip", f"{code} within {lo}..{hi} {fate}", kept, {"low": lo, "high": hi}))

    match anatomy:
        case Products(finish=finish):
            return replace(anatomy, finish=lambda *sums: held(finish(*sums)))
        case Function(plain=plain):
            return replace(anatomy, plain=lambda element: held(plain(element)))
        case Moved():
            return anatomy


def convolution_terms(
    weight: Shape, *, stride: Sequence[int], begins: Sequence[int], dilation: Sequence[int], groups: int
) -> Callable[[Place, Sequence[Shape]], Iterator[tuple[Place | None, Place]]]:
    """The terms of a convolution with a weight of shape (out, in/groups, *kernel): taps, and within each the channels."""
    out, channels, *kernel = weight

    def terms(at: Place, shapes: Sequence[Shape]) -> Iterator[tuple[Place | None, Place]]:
        sample, row, *pixel = at
        first = row // (out // groups) * channels
        for tap, place in window(pixel, shapes[0][2:], kernel, stride, begins, dilation):
            for channel in range(channels):
                yield None if place is None else (sample, first + channel, *place), (row, channel, *tap)

    return terms


def matrix_terms(at: Place, shapes: Sequence[Shape]) -> Iterator[tuple[Place | None, Place]]:
    """The terms of x·weightᵀ with x (…, k) and a constant weight (out, k)."""
    return (((*at[:-1], k), (at[-1], k)) for k in range(shapes[0][-1]))


def neighbours(terms: Sequence[tuple[Place | None, Place]]) -> Iterator[tuple[int, ...]]:
    """Pairs of terms as they are read, 2p and 2p + 1; the last of an odd number stands alone (MLAS, FBGEMM)."""
    return (tuple(range(first, min(first + 2, len(terms)))) for first in range(0, len(terms), 2))


def product_terms(at: Place, shapes: Sequence[Shape]) -> Iterator[tuple[Place | None, Place]]:
    """The terms of a @ b with a (…, m, k) and b (…, k, n), whose leading axes broadcast."""
    *batch, row, column = at
    first, second = (broadcast_place(tuple(batch), shape[:-2]) for shape in shapes)
    return (((*first, row, k), (*second, k, column)) for k in range(shapes[0][-1]))


def window(
    pixel: Sequence[int],
    image: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    begins: Sequence[int],
    dilation: Sequence[int],
) -> Iterator[tuple[Place, Place | None]]:
    """Each tap of the window of an output pixel and the pixel of the image below it, None outside; the last axis fastest."""
    for tap in product(*map(range, kernel)):
        place = tuple(p * s + t * d - b for p, s, t, d, b in zip(pixel, stride, tap, dilation, begins, strict=True))
        inside = all(0 <= i < size for i, size in zip(place, image, strict=True))
        yield tap, place if inside else None


def broadcast_place(at: Place, shape: Shape) -> Place:
    """Where an operand of that shape is read for an element of a result that it broadcasts to.

    >>> broadcast_place((2, 4, 1, 3), (5, 1, 1))
    (4, 0, 0)
    """
    tail = at[len(at) - len(shape) :]
    return tuple(0 if size == 1 else i for i, size in zip(tail, shape, strict=True))


def elementwise(at: Place, shapes: Sequence[Shape]) -> Sequence[Read]:
    """The reads of an elementwise operator: one of each operand, which broadcast."""
    return [Read(operand, broadcast_place(at, shape)) for operand, shape in enumerate(shapes)]


def window_reads(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int] = (1,)
) -> Callable[[Place, Sequence[Shape]], Sequence[Read]]:
    """The reads of a pool: the window below the element, None in the padding, which is all begins or those before all ends."""
    rank = len(kernel)
    begins = each(padding[:rank] if len(padding) == 2 * rank else padding, rank)

    def reads(at: Place, shapes: Sequence[Shape]) -> Sequence[Read]:
        found = window(at[2:], shapes[0][2:], kernel, each(stride, rank), begins, each(dilation, rank))
        return [Read(0, None if place is None else (*at[:2], *place)) for _, place in found]

    return reads


def concatenated(axis: int) -> Callable[[Place, Sequence[Shape]], Sequence[Read]]:
    """The read of operands one after the other along `axis`: the one that holds the element."""

    def reads(at: Place, shapes: Sequence[Shape]) -> Sequence[Read]:
        along = axis % len(at)
        rest = at[along]
        for operand, shape in enumerate(shapes):
            if rest < shape[along]:
                return [Read(operand, (*at[:along], rest, *at[along + 1 :]))]
            rest -= shape[along]
        return []

    return reads


def max_pool(
    *,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil: bool = False,
) -> Function:
    """The largest code of a window, which every library finds alike: rounding is monotone and the grid stays."""

    def lines(e: Element) -> Lines:
        rows = tuple({"x_at": r.place, "x": c} for r, c in zip(e.reads, e.codes, strict=True) if r.place is not None)
        largest = max(int(row["x"]) for row in rows)  # type: ignore[call-overload]
        return (Line("largest", f"the largest of {len(rows)} codes is {largest}; the grid stays", largest, {}, rows),)

    return Function(window_reads(kernel, stride, padding, dilation), lines)


def pixel_rows(e: Element, zero: int) -> tuple[dict[str, Any], ...]:
    """A row for each pixel of a window that is inside of the image: where, its code, and the code less the zero."""
    return tuple(
        {"x_at": read.place, "x": code, "term": code - zero}
        for read, code in zip(e.reads, e.codes, strict=True)
        if read.place is not None
    )


def each(numbers: Sequence[int], rank: int) -> tuple[int, ...]:
    """One number for each of `rank` axes, from one for all or one each."""
    return tuple(numbers) * (rank // len(numbers))


def place_of(index: int, shape: Shape) -> Place:
    """The place of a flat index in a tensor of that shape, the last axis fastest.

    >>> place_of(5, (2, 3))
    (1, 2)
    """
    place: Place = ()
    for size in reversed(shape):
        index, rest = divmod(index, size)
        place = (rest, *place)
    return place
