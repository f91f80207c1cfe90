"""A mismatch that exists is found and counted, and what cannot be compared is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import exactq
from exactq.errors import DataError, TargetError
from exactq.quantized import Quantized
from exactq.verification import Verdict, verify

pytestmark = pytest.mark.runtime


@pytest.fixture(scope="module")
def made() -> Quantized:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    return exactq.quantize(model, (images(2),), calibration=[(images(64),)])


def images(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def changed(made: Quantized, name: str, change: Callable[[Any], Any]) -> bytes:
    """The file with one constant changed."""
    model = onnx.load_from_string(made.artifact())
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(numpy_helper.to_array(tensor).copy())), name))
    return model.SerializeToString()


def first_differently(code: int) -> Callable[[Any], Any]:
    def change(codes: Any) -> Any:
        codes.flat[0] = code
        return codes

    return change


def by_name(verdict: Verdict) -> dict[str, int]:
    return {t.name: t.mismatches for t in verdict.tensors}


def test_equal_is_every_integer_and_every_output(made: Quantized) -> None:
    verdict = verify(made, [(images(64, 2),)])
    assert verdict.equal
    assert (verdict.mismatches, verdict.max_lsb, verdict.unverified) == (0, 0, ())
    shapes = {"input": 3 * 64, "1": 4 * 36, "2": 4 * 36, "3": 5}
    assert [t.elements for t in verdict.tensors] == [64 * n for n in shapes.values()]
    assert [t.elements for t in verdict.outputs] == [64 * 5]
    assert verdict.elements == sum(t.elements for t in (*verdict.tensors, *verdict.outputs))


def test_the_verdict_is_the_json_that_scripts_rely_on(made: Quantized) -> None:
    told = json.loads(json.dumps(verify(made, [(images(3),)]).to_json()))
    assert {"runtime", "version", "isa", "elements", "mismatches", "max_lsb", "tensors", "unverified"} <= set(told)
    assert set(told["tensors"][0]) == {"name", "elements", "mismatches", "max_lsb"}
    assert (told["runtime"], told["inputs"], told["mismatches"]) == ("onnxruntime", 3, 0)


def test_one_changed_weight_code_is_found_where_it_is_read_and_counted(made: Quantized) -> None:
    codes = numpy_helper.to_array(
        next(t for t in onnx.load_from_string(made.artifact()).graph.initializer if t.name == "3.weight/codes")
    )
    other = -int(codes.flat[0]) if abs(int(codes.flat[0])) > 40 else 127
    verdict = verify(
        made, [(images(64, 2),)], runtime=made.target.open(changed(made, "3.weight/codes", first_differently(other)))
    )
    assert not verdict.equal
    found = by_name(verdict)
    last = list(found)[-1]
    assert 0 < found[last] <= 64  # one row of the weights: one output of five
    assert {name: n for name, n in found.items() if name != last} == dict.fromkeys(list(found)[:-1], 0)
    assert verdict.mismatches == found[last] + verdict.outputs[0].mismatches
    assert verdict.outputs[0].mismatches == found[last]
    assert verdict.max_lsb == max(t.max_lsb for t in verdict.tensors) >= 1


def test_one_changed_scale_is_found(made: Quantized) -> None:
    model = onnx.load_from_string(made.artifact())
    name = next(t.name for t in model.graph.initializer if t.name.endswith("/scale") and t.name.startswith("input"))
    verdict = verify(
        made, [(images(16, 2),)], runtime=made.target.open(changed(made, name, lambda scale: scale * np.float32(1.5)))
    )
    assert not verdict.equal
    assert by_name(verdict)[made_inputs(made)] > 0


def test_one_changed_zero_point_is_found(made: Quantized) -> None:
    model = onnx.load_from_string(made.artifact())
    name = next(t.name for t in model.graph.initializer if t.name.endswith("/zero") and t.name.startswith("input"))
    verdict = verify(made, [(images(16, 2),)], runtime=made.target.open(changed(made, name, lambda zero: zero + np.uint8(1))))
    assert not verdict.equal
    assert by_name(verdict)[made_inputs(made)] > 0
    assert next(t for t in verdict.tensors if t.name == made_inputs(made)).max_lsb == 1


def made_inputs(made: Quantized) -> str:
    return made.graph.inputs[0].name


def test_the_file_of_another_model_differs(made: Quantized) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    other = exactq.quantize(model, (images(2),), calibration=[(images(64),)])
    verdict = verify(made, [(images(16, 2),)], runtime=made.target.open(other.artifact()))
    assert not verdict.equal
    assert verdict.outputs[0].mismatches > 0


def test_a_file_with_other_outputs_is_refused_by_name(made: Quantized) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x)
            return y, y.flatten(1)

    other = exactq.quantize(Two().eval(), (images(2),), calibration=[(images(8),)])
    with pytest.raises(TargetError, match="the file has 2 outputs, the model 1: is it another model's file"):
        verify(made, [(images(2),)], runtime=made.target.open(other.artifact()))


def test_a_file_with_other_inputs_is_refused(made: Quantized) -> None:
    model = nn.Bilinear(3, 4, 5).eval()
    other = exactq.quantize(model, (torch.randn(2, 3), torch.randn(2, 4)), calibration=[(torch.randn(8, 3), torch.randn(8, 4))])
    with pytest.raises(TargetError, match=r"takes 2 inputs .*, not 1"):
        verify(made, [(images(2),)], runtime=made.target.open(other.artifact()))


def test_a_value_of_another_shape_is_all_different(made: Quantized) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 6)).eval()
    other = exactq.quantize(model, (images(2),), calibration=[(images(64),)])
    verdict = verify(made, [(images(4),)], runtime=made.target.open(other.artifact()))
    assert (verdict.outputs[0].elements, verdict.outputs[0].mismatches) == (24, 24)


@pytest.mark.parametrize("data", [b"", b"no model", b"\x08\x0a" * 50])
def test_a_corrupt_file_is_a_target_error_and_nothing_is_printed(
    made: Quantized, data: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TargetError, match=r"ONNX Runtime [\d.]+ cannot load the model"):
        verify(made, [(images(2),)], runtime=made.target.open(data))
    assert capfd.readouterr() == ("", "")


def test_a_truncated_file_is_a_target_error(made: Quantized) -> None:
    with pytest.raises(TargetError):
        verify(made, [(images(2),)], runtime=made.target.open(made.artifact()[:-700]))


def test_inputs_of_another_shape_are_a_target_error_and_nothing_is_printed(
    made: Quantized, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TargetError, match="ONNX Runtime"):
        verify(made, [(torch.randn(2, 5, 8, 8),)])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -0.0, 1e-42, 3e38])
def test_extreme_inputs_are_predicted_too(made: Quantized, value: float) -> None:
    x = images(8, 4)
    x.view(-1)[::3] = value
    verdict = verify(made, [(x,)])
    assert verdict.equal, verdict


def test_fewer_inputs_than_asked_are_said(made: Quantized) -> None:
    assert verify(made, [(images(3),), (images(2),)], inputs=64).inputs == 5


def test_no_more_inputs_than_asked_are_run(made: Quantized) -> None:
    seen: list[int] = []
    verdict = verify(made, ((images(4, n),) for n in range(100)), inputs=10, progress=seen.append)
    assert (verdict.inputs, seen) == (10, [4, 4, 2])


def test_no_input_at_all_is_an_error(made: Quantized) -> None:
    with pytest.raises(DataError, match="there is no input to verify with"):
        verify(made, [])


class Island(nn.Module):
    """Integers, a float operator whose bits are not known, integers."""

    def __init__(self, *, tail: bool) -> None:
        super().__init__()
        self.a, self.b, self.tail = nn.Linear(8, 6), nn.Linear(6, 4), tail

    def forward(self, x: Tensor) -> Tensor:
        y = torch.softmax(self.a(x), -1)
        return self.b(y) if self.tail else y


def test_behind_a_float_island_everything_is_compared_again() -> None:
    torch.manual_seed(0)
    made = exactq.quantize(Island(tail=True).eval(), (torch.randn(2, 8),), calibration=[(torch.randn(64, 8),)])
    verdict = verify(made, [(torch.randn(64, 8) * 2,)])
    assert verdict.equal
    assert [u.split(":")[0] for u in verdict.unverified] == ["softmax"]
    assert [t.name for t in verdict.tensors] == [made_inputs(made), "a", "b"]
    assert [t.name for t in verdict.outputs] == ["b"]


def test_an_output_that_a_float_island_makes_is_not_compared() -> None:
    torch.manual_seed(0)
    made = exactq.quantize(Island(tail=False).eval(), (torch.randn(2, 8),), calibration=[(torch.randn(64, 8),)])
    verdict = verify(made, [(torch.randn(64, 8),)])
    assert verdict.outputs == ()
    assert [u.split(":")[0] for u in verdict.unverified] == ["softmax"]


def test_what_follows_from_an_unknown_value_that_the_runtime_hides_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    made = exactq.quantize(Island(tail=True).eval(), (torch.randn(2, 8),), calibration=[(torch.randn(64, 8),)])
    from exactq.targets.onnxruntime.runtime import Tracer

    whole = Tracer.trace
    monkeypatch.setattr(Tracer, "trace", lambda self, x: {k: v for k, v in whole(self, x).items() if "softmax" not in k})
    verdict = verify(made, [(torch.randn(64, 8),)])
    assert [t.name for t in verdict.tensors] == [made_inputs(made), "a"]
    assert verdict.outputs == ()
    assert verdict.unverified[1:] == ("b: it is made from `softmax`, whose bits are not known",)


def test_nothing_compared_is_not_equal() -> None:
    assert not Verdict("onnxruntime", "1", "avx2", 3, (), (), ()).equal


def test_the_outputs_are_those_of_the_session_without_instruments(made: Quantized, monkeypatch: pytest.MonkeyPatch) -> None:
    from exactq.targets.onnxruntime import runtime

    real = runtime.run
    session = runtime.session
    plain: list[Any] = []

    def opened(model: bytes, **options: Any) -> Any:
        found = session(model, **options)
        if not options:
            plain.append(found)
        return found

    monkeypatch.setattr(runtime, "session", opened)
    monkeypatch.setattr(runtime, "run", lambda s, x: tuple(y + 1 for y in real(s, x)) if s in plain else real(s, x))
    verdict = verify(made, [(images(4),)])
    assert sum(t.mismatches for t in verdict.tensors) == 0
    assert [t.mismatches for t in verdict.outputs] == [20]


def test_a_model_of_a_fixed_batch_size_is_verified_on_whole_batches() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x + torch.ones(6, 4))

    x = torch.randn(6, 4)
    made = exactq.quantize(Fixed().eval(), (x,), calibration=[x])
    assert not made.float_graph.inputs[0].batch
    verdict = exactq.verify(made, [x, 2 * x], inputs=10)
    assert verdict.inputs == 12
    assert verdict.equal
