"""What a target can do, as a value: for each operator, what it does to codes, and the source that says so.

Targets fill these records with literals (`targets/<name>/rules.py`); the planner reads them and knows no runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import fx

from exactq.numerics.formats import INT32, Format

Declines = Callable[[fx.Node], str | None]
"""Why this very call cannot run in integers, or None where it can."""


def never(node: fx.Node) -> str | None:
    """The answer of an operator that always can."""
    return None


@dataclass(frozen=True)
class Computes:
    """Multiplies activation codes with weight codes into an int32 accumulator and requantizes it.

    `axis` is the weight's output channel. `exempt` says for which weight shapes the kernel never saturates even where
    `Ability.saturates`, `always` for which it does even where not.
    """

    kernel: str
    source: str
    axis: int = 0
    declines: Declines = never
    exempt: Callable[[fx.Node, Sequence[int]], bool] = lambda node, weight_shape: False
    always: Callable[[fx.Node, Sequence[int]], bool] = lambda node, weight_shape: False


@dataclass(frozen=True)
class Makes:
    """Makes new codes, on a grid of the output's own, from the codes of every tensor it reads.

    `joins` names the layers, by operator, whose own kernel does this addition on the accumulator, and that kernel.
    """

    kernel: str
    source: str
    declines: Declines = never
    joins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Passes:
    """Moves, selects or averages codes: the output lives on the grid of the first input. `how` says which in a sentence."""

    kernel: str
    source: str
    declines: Declines = never
    how: str = "moves codes and makes none"


@dataclass(frozen=True)
class Activates:
    """Bounds the value in front of it: free inside that value's kernel, where the output grid ends at the same bounds."""

    kernel: str
    source: str
    declines: Declines = never


Rule = Computes | Makes | Passes | Activates


@dataclass(frozen=True)
class Ability:
    """A target on one instruction set: its operators, the formats its kernels take, and whether int16 pairs saturate.

    `narrow` are formats of activations that kernels read, and whose ends the target's files put behind the kernel before.
    `bias` is the format in which kernels add a bias to their products, on the products' grid; None where they add the real.
    `pairs` is the weight observer that certifies the pairs which these kernels form.
    """

    target: str
    isa: str
    operators: Mapping[str, Rule]
    weights: tuple[Format, ...]
    activations: tuple[Format, ...]
    saturates: bool
    saturation_source: str
    stored_bits: Mapping[int, int]
    """Weight bits -> the bits that the artifact stores for each, where the runtime's kernels know no narrower type."""
    bias: Format | None = INT32
    rounds_bias: bool = False
    """Whether kernels with such a format also take the real bias, and round it themselves."""
    weight_zeros: bool = False
    """Whether kernels take weights on grids whose zero is not 0."""
    narrow: tuple[Format, ...] = ()
    pairs: str = "pairsafe"
    dynamic: Mapping[str, Computes] = field(default_factory=dict)
    """The operators whose kernels take reals and lay a grid over them when they see them, and give reals; by operator."""
