"""The ways of training through rounding, by name: what the forward pass is, and what learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from exactq.errors import unknown
from exactq.training.exact import Lower, exact
from exactq.training.lsq import lsq
from exactq.training.simulation import Method
from exactq.training.straight_through import straight_through

METHODS: Mapping[str, Callable[[Lower], Method]] = {
    "straight_through": lambda lower: straight_through,
    "lsq": lambda lower: lsq,
    "exact": lambda lower: partial(exact, lower=lower),
    "exact_lsq": lambda lower: partial(exact, lower=lower, gradient=lsq),
}
"""Name -> the way, given the target's emulator: fake quantization; learned steps; the emulator's forward; both."""

SAYS = {
    "straight_through": "fake quantization",
    "lsq": "fake quantization with learned steps",
    "exact": "the runtime's own arithmetic",
    "exact_lsq": "the runtime's own arithmetic with learned steps",
}
"""Name -> what it is, for people."""


def method_named(name: str, lower: Lower) -> Method:
    """The way of training of that name; `lower` is the target's emulator of a Q/DQ graph.

    Raises `UsageError` for an unknown name.
    """
    if name not in METHODS:
        raise unknown("method of training", name, METHODS)
    return METHODS[name](lower)
