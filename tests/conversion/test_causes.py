"""Why the three models of PyTorch's issue tracker jump when they are converted, as `diff` finds it."""

from __future__ import annotations

from functools import cache

import pytest
from examples import pytorch_issues
from examples.pytorch_issues import Case

import exactq
from exactq.difference import Cause, Diff

LAST_BITS = {Cause.MULTIPLIER, Cause.ORDER}
ENGINES = ("fbgemm", "onednn", "qnnpack", "x86")


@cache
def found(make: str, engine: str, version: int | None = None) -> Diff:
    """The trained module beside PyTorch's own conversion of it."""
    case: Case = getattr(pytorch_issues, make)(engine, **({} if version is None else {"version": version}))
    with pytorch_issues.on_engine(engine):
        return exactq.diff(case.prepared, case.converted, [case.inputs], inputs=len(case.inputs[0]))


def causes(result: Diff, least: float = 0.0) -> list[Cause]:
    return [c.cause for c in result.causes if c.cause not in LAST_BITS and c.share > least]


def share(result: Diff, tensor: str, *, given_equal: bool = False) -> float:
    (t,) = (t for t in result.tensors if t.name == tensor)
    return (t.given_equal if given_equal else t.mismatches) / t.elements


slow = pytest.mark.slow
every_engine = pytest.mark.parametrize("engine", [ENGINES[0], *(pytest.param(e, marks=slow) for e in ENGINES[1:])])


@pytest.mark.runtime
@every_engine
def test_95785_the_ramp_repeats_127_since_its_weights_are_on_another_grid(engine: str) -> None:
    result = found("ramp", engine)
    assert (result.first, causes(result)) == ("conv", [Cause.WEIGHTS])
    assert share(result, "conv") == 0.5  # codes 127..254 instead of 128..255
    assert result.causes[0].max_lsb == 1


@pytest.mark.runtime
@every_engine
def test_88800_outputs_differ_since_fused_fake_quantization_has_its_own_formula_for_the_weights(engine: str) -> None:
    result = found("pointwise", engine)
    assert result.first == "conv"
    assert causes(result)[0] is Cause.WEIGHTS
    assert set(causes(result)) <= {Cause.WEIGHTS, Cause.BIAS}
    assert 0.13 < share(result, "conv") < 0.31
    assert result.causes[0].share > 0.99


@pytest.mark.runtime
@every_engine
def test_88800_with_legacy_fake_quantization_only_last_bits_and_biases_are_left(engine: str) -> None:
    result = found("pointwise", engine, 0)
    assert causes(result) == ([Cause.BIAS] if engine == "qnnpack" else [])
    assert share(result, "conv") < 1e-3


@slow
@pytest.mark.runtime
def test_108639_the_spiral_has_two_causes_and_the_clamp_remains_without_the_fused_formula() -> None:
    fused, legacy = found("spiral", "fbgemm", 1), found("spiral", "fbgemm", 0)
    assert causes(fused) == [Cause.WEIGHTS, Cause.RANGE]
    assert causes(legacy) == [Cause.RANGE]
    assert 0.25 < share(fused, "fc3") < 0.5
    assert 0.01 < share(legacy, "fc3") < 0.1
    assert [round(share(fused, f"fc{n}", given_equal=True), 2) for n in (1, 2, 3)] == [0.04, 0.07, 0.1]


@slow
@pytest.mark.runtime
def test_108639_on_qnnpack_rounding_the_bias_is_the_second_cause() -> None:
    assert causes(found("spiral", "qnnpack", 1), 1e-3) == [Cause.WEIGHTS, Cause.BIAS]
    assert causes(found("spiral", "qnnpack", 0), 1e-3) == [Cause.BIAS]


@slow
@pytest.mark.runtime
def test_108639_on_onednn_pairs_saturate_where_the_machine_has_no_vnni() -> None:
    case = pytorch_issues.spiral("onednn", version=0)
    with pytorch_issues.on_engine("onednn"):
        deployed = exactq.convert(case.converted, case.inputs, target="onednn@avx2")
        result = exactq.diff(case.prepared, deployed, [case.inputs], inputs=6000)
    assert causes(result)[0] is Cause.PAIRS
    assert share(result, "fc3") > 0.5
