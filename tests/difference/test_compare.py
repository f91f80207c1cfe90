"""What diff says beside causes: where executions part, how it grows, floats beside codes, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.ao.quantization as tq
from tests.targets.networks import WHOLE, batch, quantized
from torch import nn

import exactq
from exactq.difference import Cause, Execution, diff, execution
from exactq.difference.sides import side
from exactq.errors import DataError, UsageError
from exactq.graphs.qdq import CODES
from exactq.traces import Trace

from .planted import Net, inputs, made, qdq, regridded, weights_scaled


def test_the_first_tensor_that_parts_is_where_the_difference_arises_and_it_grows_behind() -> None:
    graph = made().graph
    result = diff(qdq(graph), qdq(weights_scaled(graph, 1.02, "second")), [inputs()])
    tensors = {t.name: t for t in result.tensors}
    assert result.first == "relu"
    assert [t.mismatches for t in result.tensors[:2]] == [0, 0]
    assert tensors["relu"].mismatches == tensors["relu"].given_equal > 0
    assert tensors["last"].mismatches > tensors["last"].given_equal == 0
    assert tensors["last"].relative > 0.0
    (cause,) = (c for c in result.causes if c.cause is Cause.WEIGHTS)
    assert cause.places == ("relu",)
    assert 0 < cause.outputs <= 1


def test_beside_a_float_model_each_value_has_a_grid_that_the_other_lacks() -> None:
    result = exactq.diff((made(), "float"), (made(), "runtime"), [inputs()])
    causes = {c.cause: c for c in result.causes}
    assert set(causes) <= {Cause.WEIGHTS, Cause.ACTIVATIONS, Cause.ORDER, Cause.MULTIPLIER}
    assert {Cause.WEIGHTS, Cause.ACTIVATIONS} <= set(causes)
    assert "observer" in causes[Cause.ACTIVATIONS].remedy
    assert all(t.max_lsb == round(t.max_lsb) for t in result.tensors)


def test_a_module_is_captured_and_stands_beside_its_quantized_form() -> None:
    torch.manual_seed(3)
    model = Net().eval()
    quantized = exactq.quantize(model, inputs(2), calibration=[inputs()])
    result = exactq.diff(model, quantized, [inputs()])
    again = exactq.diff((quantized, "float"), quantized, [inputs()])
    assert [(t.name, t.mismatches) for t in result.tensors] == [(t.name, t.mismatches) for t in again.tensors]


def test_the_findings_are_json_and_text_of_80_columns() -> None:
    graph = made().graph
    result = diff(qdq(graph), qdq(regridded(graph, "relu6", scale=1.5)), [inputs()])
    plain = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert {"first", "causes", "tensors"} <= set(plain)
    assert set(plain["causes"][0]) >= {"cause", "share", "max_lsb", "remedy"}
    assert plain["causes"][0]["cause"] == "different activation grid"
    lines = str(result).splitlines()
    assert all(len(line) <= 80 for line in lines), lines
    assert "first apart at `relu6`, given equal values before it" in lines


def test_two_float_executions_are_compared_by_their_outputs() -> None:
    result = exactq.diff((made(), "float"), (made(), "float"), [inputs()])
    assert (result.equal, [t.name for t in result.tensors]) == (True, ["last"])


def test_fewer_inputs_are_taken_than_there_are() -> None:
    seen: list[int] = []
    result = diff(execution(made()), execution(made()), [inputs(8), inputs(8), inputs(8)], inputs=10, progress=seen.append)
    assert (result.inputs, seen) == (10, [8, 2])


class Other(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.first(x))


def test_other_models_and_inputs_are_refused_by_name() -> None:
    other = exactq.quantize(Other().eval(), inputs(2), calibration=[inputs()])
    with pytest.raises(DataError, match=r"different models: `\w+` is in the \w+ one alone"):
        exactq.diff(made(), other, [inputs()])
    with pytest.raises(DataError, match=r"input `x` is \(n, 3, 8, 8\), not \(2, 3, 9, 9\)"):
        exactq.diff(made(), made(), [torch.zeros(2, 3, 9, 9)])
    with pytest.raises(DataError, match=r"2 inputs given, the models take 1: x"):
        exactq.diff(made(), made(), [(torch.zeros(2, 3, 8, 8),) * 2])
    with pytest.raises(DataError, match="no input to compare on"):
        exactq.diff(made(), made(), [])
    with pytest.raises(UsageError, match=r"unknown way to execute a model 'emulater': did you mean 'emulator'\?"):
        exactq.diff(made(), (made(), "emulater"), [inputs()])
    with pytest.raises(UsageError, match="unknown instruction set of fbgemm 'avx3'"):
        exactq.diff(made(), (made(), "emulator@avx3"), [inputs()])


def test_a_sum_that_one_engine_adds_inside_a_convolution_is_named_and_saturates_as_layers_do() -> None:
    residual = WHOLE[0]
    images, apart = [batch(residual, 4, 5)], quantized(residual, target="fbgemm")
    for target in ("onednn", "inductor"):
        together = quantized(residual, target=target)
        result = diff(execution(apart), execution(together), images, inputs=4)
        causes = {c.cause: c for c in result.causes}
        assert set(causes) - {Cause.MULTIPLIER} == {Cause.SUM}, result
        assert set(causes[Cause.SUM].places) == {"0.3.relu_1", "0.4.relu_1", "0.5.relu_1"}
        assert causes[Cause.SUM].share > 0.9
        widths = [execution(together, f"emulator@{isa}") for isa in ("avx2", "avx512vnni")]
        sharp = (images[0][0] * 8,)  # most codes at the end of their grid, so that pairs of fused layers saturate, too
        saturated = diff(*widths, [sharp], inputs=4)
        assert {c.cause for c in saturated.causes} - {Cause.MULTIPLIER} == {Cause.PAIRS}, saturated
        assert set(saturated.causes[0].places) & set(causes[Cause.SUM].places)


class Upsampled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.up, self.last = nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 2, stride=2), nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.up(self.first(x))))  # type: ignore[no-any-return]


def test_layers_without_integer_sums_are_computed_as_what_they_decode_to() -> None:
    torch.manual_seed(0)
    made = exactq.quantize(Upsampled().eval(), inputs(2), calibration=[inputs()])
    result = exactq.diff((made, "qdq"), made, [inputs()])
    assert {c.cause for c in result.causes} <= {Cause.ORDER, Cause.MULTIPLIER}
    assert exactq.diff((made, "float"), made, [inputs()]).first == "first"


class Shown:
    """An execution's own answers, one of them left out or moved off its grid."""

    def __init__(self, given: Execution, key: str, by: float | None) -> None:
        self.given, self.key, self.by = given, key, by

    def __call__(self, batch: Sequence[torch.Tensor]) -> Trace:
        seen = dict(self.given.trace(batch))
        if self.by is None:
            seen = {name: value for name, value in seen.items() if name.partition("/")[0] != self.key}
        else:
            grid = side(self.given, self.given.graph, {}).grids[self.key]
            seen[self.key] = grid.decode(seen.pop(self.key + CODES)) + self.by * grid.scale
        return seen


def test_what_one_side_does_not_show_is_said() -> None:
    given = qdq(made().graph)
    result = diff(given, replace(given, name="blind", observe=Shown(given, "relu", None)), [inputs()])
    assert (result.equal, dict(result.unseen)) == (True, {"relu": "blind"})
    assert "not compared: `relu`, which blind does not show" in str(result)
    assert result.to_json()["unseen"] == {"relu": "blind"}


def test_reals_beside_the_grid_are_no_codes() -> None:
    given = qdq(made().graph)
    result = diff(given, replace(given, observe=Shown(given, "relu", 0.25)), [inputs()])
    (at,) = (t for t in result.tensors if t.name == "relu")
    assert (at.mismatches, at.max_lsb) == (at.elements, 0.25)
    assert [c.cause for c in result.causes] == [Cause.UNKNOWN]


def test_a_module_that_only_observes_has_no_codes_to_compare() -> None:
    net = nn.Sequential(tq.QuantStub(), nn.Conv2d(3, 2, 1), tq.DeQuantStub()).eval()
    net.qconfig = tq.get_default_qconfig("fbgemm")
    observing = tq.prepare(net)
    observing(*inputs())
    with pytest.raises(UsageError, match="only observes ranges and computes in floats"):
        exactq.diff(observing, observing, [inputs()])
