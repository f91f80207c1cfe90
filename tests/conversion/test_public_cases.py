"""The three public cases: how far PyTorch's own conversion jumps, and that the deployed model equals the trained one."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from examples import pytorch_issues
from examples.pytorch_issues import Case, on_engine

from exactq.conversion import Foreign, foreign
from exactq.verification import verify

pytestmark = pytest.mark.runtime


@cache
def spiral(engine: str, version: int) -> Case:
    return pytorch_issues.spiral(engine, version=version)


def outcome(case: Case, target: str | None = None) -> tuple[int, int, Foreign]:
    """How many outputs differ from the trained model's: of PyTorch's conversion, of ours; every integer is verified."""
    with on_engine(case.engine), torch.no_grad():
        trained = case.prepared(*case.inputs)
        jumped = case.converted(*case.inputs)
        theirs = foreign(case.prepared, case.inputs, target=target)
        made = theirs.quantized
        runtime = made.target.open(made.artifact())
        (deployed,) = runtime.run(case.inputs)
        assert verify(made, [case.inputs], inputs=10**6, runtime=runtime).equal
        own = foreign(case.converted, case.inputs)
        assert verify(own.quantized, [case.inputs], inputs=10**6, runtime=own.runtime).equal
    return int((jumped != trained).sum()), int((deployed != trained).sum()), theirs


SLOW = pytest.mark.slow


@pytest.mark.parametrize("engine", ["fbgemm", pytest.param("x86", marks=SLOW), pytest.param("qnnpack", marks=SLOW)])
def test_95785_the_ramp(engine: str) -> None:
    case = pytorch_issues.ramp(engine)
    with torch.no_grad(), on_engine(engine):
        row, wrong = ((m(*case.inputs)[0, 0, 0] * 255).round().int().tolist() for m in (case.prepared, case.converted))
    assert row == list(range(256))
    assert wrong[126:130] == [126, 127, 127, 128]
    assert wrong[-1] == 254
    before, after, theirs = outcome(case)
    assert (before, after) == (1536, 0)
    (jump,) = (j for j in theirs.jumps if j.name == "conv.weight")
    assert (jump.trained[1], jump.converted[1]) == (-128, 0)
    assert jump.converted[0] / jump.trained[0] == pytest.approx(2, abs=1e-6)


def test_95785_on_an_engine_that_takes_no_affine_weights_says_so() -> None:
    case = pytorch_issues.ramp("onednn")
    with on_engine("onednn"), pytest.raises(Exception, match=r"zero is -128.*choose the target fbgemm, x86 or qnnpack"):
        foreign(case.prepared, case.inputs)


@pytest.mark.parametrize(
    ("engine", "target", "share"),
    [
        ("fbgemm", None, 0.146),
        pytest.param("x86", None, 0.146, marks=SLOW),
        pytest.param("onednn", None, 0.296, marks=SLOW),
        ("qnnpack", "x86", 0.97),
    ],
)
def test_88800_the_image(engine: str, target: str | None, share: float) -> None:
    case = pytorch_issues.pointwise(engine)
    before, after, theirs = outcome(case, target)
    assert before / case.inputs[0].numel() == pytest.approx(share, abs=0.01)
    assert after == 0
    ratios = [j.converted[0] / j.trained[0] for j in theirs.jumps if j.name == "conv.weight"]
    assert ratios[0] == pytest.approx(127 / 127.5 if ratios[0] < 1 else 128 / 127.5, abs=1e-5) or ratios[0] == pytest.approx(
        128 / 127.5 if ratios[0] > 1 else 127.5 / 128, abs=1e-5
    )


def test_88800_an_int32_bias_leaves_ties() -> None:
    _, after, theirs = outcome(pytorch_issues.pointwise("qnnpack"))
    assert 0 < after < 0.002 * 150528  # QNNPACK rounds the bias to int32, whatever the grids are
    assert any("rounds each bias" in note for note in theirs.quantized.notes)


@pytest.mark.slow
@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize(("engine", "target"), [("fbgemm", None), ("x86", None), ("qnnpack", "x86")])
def test_108639_the_spiral(engine: str, target: str | None, version: int) -> None:
    before, after, _ = outcome(spiral(engine, version), target)
    assert before > (50 if version == 0 else 1500)
    assert after == 0


def test_108639_seven_bits_clamped_in_training_alone() -> None:
    case = pytorch_issues.spiral("fbgemm", version=0, steps=60)
    before, after, theirs = outcome(case)
    assert before > 0
    assert after == 0
    assert theirs.jumps == ()  # the grids are the same: what jumps is the clamp at 127


def test_the_example_says_how_far_a_case_jumps_why_and_where_it_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["pytorch_issues.py", "95785", "--engine", "onednn"])
    pytorch_issues.main()
    told = capsys.readouterr().out
    assert "1,536 of 3,072 outputs differ after torch.ao.quantization.convert" in told
    assert "different weight grid" in told
    assert "not on onednn: `conv.weight` is on a grid whose zero is -128" in told
    assert "deployed on x86 by exactq.convert: 0 of 3,072 outputs differ" in told
