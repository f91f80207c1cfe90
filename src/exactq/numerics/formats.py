"""Number formats and grids: which integers exist, and which real number each stands for.

real = scale · (code − zero). Tensor, channel and block granularity are one case: `scale` and `zero` have either no
dimension, or one for each dimension of the tensor, each dividing the tensor's (`expand`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exactq.errors import ModelError, unknown


@dataclass(frozen=True)
class Format:
    """The integers lo..hi, stored in `bits` bits; signed if lo is negative.

    >>> INT8, INT8.narrow
    (Format('int8', -128..127), Format('int8', -127..127))
    """

    bits: int
    lo: int
    hi: int

    def __post_init__(self) -> None:
        full = (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1) if self.lo < 0 else (0, 2**self.bits - 1)
        if not (full[0] <= self.lo < self.hi <= full[1]):
            raise ModelError(f"format {self.lo}..{self.hi} does not fit {self.bits} bits, which hold {full[0]}..{full[1]}")

    def __repr__(self) -> str:
        return f"Format('{self.name}', {self.lo}..{self.hi})"

    @property
    def signed(self) -> bool:
        """Whether codes below zero exist."""
        return self.lo < 0

    @property
    def name(self) -> str:
        """`int8`, `uint4` …: sign and stored bits; the range may be narrower."""
        return f"{'int' if self.signed else 'uint'}{self.bits}"

    @property
    def narrow(self) -> Format:
        """The same format with as many negative as positive codes: −hi..hi."""
        return Format(self.bits, -self.hi, self.hi) if self.signed else self

    @property
    def dtype(self) -> torch.dtype:
        """The smallest torch dtype that holds every code (int4 lives in int8 until it is packed)."""
        table = _SIGNED if self.signed else _UNSIGNED
        return next(dtype for bits, dtype in table if self.bits <= bits)


_SIGNED = ((8, torch.int8), (16, torch.int16), (32, torch.int32))
_UNSIGNED = ((8, torch.uint8), (16, torch.uint16), (32, torch.uint32))

INT2, INT3, INT4, INT8 = (Format(b, -(2 ** (b - 1)), 2 ** (b - 1) - 1) for b in (2, 3, 4, 8))
UINT2, UINT3, UINT4, UINT8 = (Format(b, 0, 2**b - 1) for b in (2, 3, 4, 8))
INT16, UINT16 = Format(16, -32768, 32767), Format(16, 0, 65535)
INT32 = Format(32, -(2**31), 2**31 - 1)
FORMATS = {f.name: f for f in (INT2, INT3, INT4, INT8, UINT2, UINT3, UINT4, UINT8, INT16, UINT16, INT32)}


def format_named(name: str) -> Format:
    """The format of that name; a trailing `-narrow` asks for −hi..hi.

    >>> format_named("int8-narrow")
    Format('int8', -127..127)
    """
    base, _, suffix = name.partition("-")
    if base not in FORMATS or suffix not in ("", "narrow") or (suffix and not FORMATS[base].signed):
        raise unknown("format", name, [*FORMATS, *(f"{n}-narrow" for n in FORMATS if n.startswith("int"))])
    return FORMATS[base].narrow if suffix else FORMATS[base]


def spelled(fmt: Format) -> str:
    """The name that `format_named` reads back.

    >>> spelled(INT4.narrow), spelled(UINT8)
    ('int4-narrow', 'uint8')
    """
    if fmt == FORMATS.get(fmt.name):
        return fmt.name
    if fmt.signed and fmt == FORMATS[fmt.name].narrow:
        return f"{fmt.name}-narrow"
    raise ModelError(f"{fmt!r} has no name: only full and narrow ranges are written to files")


@dataclass(frozen=True, eq=False)
class Grid:
    """A format placed on the real line: real = scale · (code − zero).

    `scale` float32 and `zero` int32, both of the same shape: `()` for the tensor, `(C, 1, 1, 1)` for a channel each,
    any shape whose every dimension divides the tensor's for blocks. Scales are finite and positive; zeros are codes of the
    format.
    """

    format: Format
    scale: Tensor
    zero: Tensor

    def __post_init__(self) -> None:
        if self.scale.dtype != torch.float32 or self.zero.dtype != torch.int32 or self.scale.shape != self.zero.shape:
            raise ModelError(
                "a grid needs a float32 scale and an int32 zero of one shape, not "
                f"{self.scale.dtype} {tuple(self.scale.shape)} and {self.zero.dtype} {tuple(self.zero.shape)}"
            )
        if not bool((torch.isfinite(self.scale) & (self.scale > 0)).all()):
            raise ModelError(f"a grid needs finite positive scales, not {self.scale.min().item()}..{self.scale.max().item()}")
        if bool(((self.zero < self.format.lo) | (self.zero > self.format.hi)).any()):
            raise ModelError(
                f"zero {self.zero.flatten().tolist()[:4]} is no code of {self.format!r}: reals would lose their zero"
            )

    def __repr__(self) -> str:
        many = f" ×{self.scale.numel()}" if self.scale.numel() > 1 else ""
        return f"Grid({self.format.name}, scale={self.scale.flatten()[0].item():.6g}, zero={int(self.zero.flatten()[0])}{many})"

    def same_as(self, other: Grid) -> bool:
        """Whether every code means the same real on both grids."""
        return (
            self.format == other.format
            and self.scale.shape == other.scale.shape
            and bool((self.scale == other.scale).all() and (self.zero == other.zero).all())
        )

    def encode(self, x: Tensor) -> Tensor:
        """The nearest code of each real, ties to even, clamped, in the format's dtype (ONNX QuantizeLinear).

        The quotient is a true float32 division, the zero point is added after rounding, NaN gives the lowest code.

        >>> Grid(UINT8, torch.tensor(0.5), torch.tensor(3, dtype=torch.int32)).encode(torch.tensor([0.25, 0.75, -9.0]))
        tensor([3, 5, 0], dtype=torch.uint8)
        """
        scale, zero = expand(self.scale, x.shape), expand(self.zero, x.shape)
        steps = torch.nan_to_num(x.to(torch.float32) / scale, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        # In float64 so that 32-bit formats, whose ends float32 cannot hold, clamp to their own ends.
        steps, zero = steps.double(), zero.double()
        return (torch.round(torch.clamp(steps, self.format.lo - zero, self.format.hi - zero)) + zero).to(self.format.dtype)

    def decode(self, codes: Tensor) -> Tensor:
        """The real of each code, float32: one float32 product (ONNX DequantizeLinear)."""
        scale, zero = expand(self.scale, codes.shape), expand(self.zero, codes.shape)
        return (codes.to(torch.int64) - zero).to(torch.float32) * scale


def expand(parameter: Tensor, shape: Sequence[int]) -> Tensor:
    """`parameter` repeated to broadcast over `shape`: each of its dimensions must divide the tensor's.

    >>> expand(torch.tensor([[1.0, 2.0]]), (3, 4))[0]
    tensor([1., 1., 2., 2.])
    """
    if parameter.ndim == 0:
        return parameter
    if parameter.ndim != len(shape) or any(full % part for part, full in zip(parameter.shape, shape, strict=True)):
        raise ModelError(f"a grid of shape {tuple(parameter.shape)} does not divide a tensor of shape {tuple(shape)}")
    for axis, (part, full) in enumerate(zip(parameter.shape, shape, strict=True)):
        if part not in (1, full):
            parameter = parameter.repeat_interleave(full // part, dim=axis)
    return parameter
