"""The plan as a value: what cannot be is refused when it is made."""

from __future__ import annotations

import math

import pytest

from exactq.errors import UsageError
from exactq.numerics.formats import INT8, INT32, UINT8
from exactq.plans.plan import (
    Dynamic,
    Edge,
    Fixed,
    Float,
    Fused,
    Own,
    PerChannel,
    Plan,
    Product,
    Same,
    Slot,
    references,
    summary,
)

OWN = Own(UINT8, "minmax", "why")


def plan(edges: dict[Edge, Slot] | None = None, **slots: Slot) -> Plan:
    return Plan("onnxruntime", "avx2", "w8a8", slots, edges or {})


def test_a_chain_of_same_ends_at_the_value_whose_grid_it_is() -> None:
    made = plan(a=OWN, b=Same("a", "why"), c=Same("b", "why"), d=Float("why"), e=Same("d", "why"))
    assert [made.source(name) for name in "abc"] == ["a", "a", "a"]
    assert [made.quantized(name) for name in "abcde"] == [True, True, True, False, False]


def test_a_reader_reads_its_edge_and_everybody_else_the_value() -> None:
    edge = Fixed(UINT8, 0.5, 3, "why")
    made = plan({Edge("b", "c"): edge}, a=OWN, b=Same("a", "why"), c=OWN, d=OWN)
    assert made.read("b", "c") == edge
    assert made.read("b", "d") == made.read("a", "c") == OWN
    assert str(Edge("b", "c")) == "b@c"


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ({"pool": Same("reluu", "why"), "relu": OWN}, "the plan's line for `pool` 'reluu': did you mean 'relu'?"),
        (
            {"bias": Product(("relu", "wait"), INT32, "why"), "relu": OWN, "weight": OWN},
            "`bias` 'wait': did you mean 'weight'?",
        ),
        ({"conv": Fused("rel", "why"), "relu": OWN}, "the plan's line for `conv` 'rel': did you mean 'relu'?"),
        (
            {"a": Same("b", "why"), "b": Same("a", "why")},
            "the plan's lines a -> b -> a go in a circle: one of them needs a grid",
        ),
        ({"a": Same("a", "why")}, "the plan's lines a -> a go in a circle"),
    ],
)
def test_a_line_that_speaks_of_nothing_is_refused(slots: dict[str, Slot], message: str) -> None:
    with pytest.raises(UsageError) as error:
        plan(**slots)
    assert message in str(error.value)


@pytest.mark.parametrize("edge", [Edge("relux", "relu"), Edge("relu", "relux")])
def test_an_edge_between_values_that_are_not_there_is_refused(edge: Edge) -> None:
    with pytest.raises(UsageError, match=r"the plan's edge `.* -> .*` 'relux': did you mean 'relu'"):
        plan({edge: OWN}, relu=OWN)


def test_an_edge_speaks_only_of_values_too() -> None:
    with pytest.raises(UsageError, match="the plan's line for `bias@conv` 'weigh': did you mean 'weight'"):
        plan({Edge("bias", "conv"): Product(("x", "weigh"), INT32, "why")}, x=OWN, bias=OWN, conv=OWN, weight=OWN)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, 1e-60, 1e60])
def test_a_given_scale_is_a_positive_float32(scale: float) -> None:
    with pytest.raises(UsageError, match=r"the scale is .*; it needs a positive float32"):
        Fixed(UINT8, scale, 0, "why")


@pytest.mark.parametrize("zero", [-1, 256])
def test_a_given_zero_is_a_code(zero: int) -> None:
    with pytest.raises(UsageError, match=rf"the zero {zero} is no code of .*: reals would lose their zero"):
        Fixed(UINT8, 0.1, zero, "why")


def test_axes_are_counted_from_zero() -> None:
    with pytest.raises(UsageError, match="axis is -1; axes are counted from 0"):
        PerChannel(-1)


def test_every_kind_of_slot_is_summed_up_and_says_what_it_speaks_of() -> None:
    slots: list[Slot] = [
        OWN,
        Own(INT8, "mse", "why", PerChannel(1), symmetric=True),
        Same("a", "why"),
        Product(("a", "b"), INT32, "why"),
        Fixed(UINT8, 0.5, 3, "why"),
        Dynamic(UINT8, "why"),
        Dynamic(UINT8, "why", reduce_range=True),
        Fused("a", "why"),
        Float("why"),
    ]
    assert [summary(s) for s in slots] == [
        ("uint8 0..255", "tensor", "minmax"),
        ("int8 -128..127", "channel 1", "mse"),
        ("same", "as a", ""),
        ("int32", "a × b", ""),
        ("uint8 0..255", "scale 0.5, zero 3", "given"),
        ("uint8 0..255", "tensor", "at run time"),
        ("uint8 0..127", "tensor", "at run time"),
        ("accumulator", "of a", ""),
        ("float32", "", ""),
    ]
    assert [references(s) for s in slots] == [(), (), ("a",), ("a", "b"), (), (), (), ("a",), ()]
