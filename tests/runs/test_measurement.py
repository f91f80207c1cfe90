"""What a run measures: one pass over the data, and the verdict's word."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from exactq.datasets.splits import in_memory
from exactq.errors import DataError
from exactq.fidelity import Outputs, Ratio
from exactq.flow import prepare, quantize
from exactq.metrics import ACCURACY, COSINE
from exactq.runs.measurement import Budget, Evaluated, check_evaluation, evaluate, float_run, notes, plain, stored_weights, word
from exactq.talk import SILENT
from exactq.verification import Compared, Verdict


def verdict(mismatches: int = 0, elements: int = 10) -> Verdict:
    return Verdict("r", "1", "i", 1, (Compared("x", elements, mismatches, mismatches),), (), ())


def found(drop: float = 0.0, error: float = 0.0) -> Evaluated:
    return Evaluated({"float": 1.0, "ptq": 1.0, "deployed": 1.0 - drop}, Outputs(Ratio(), 0, 0, error, 1))


@pytest.mark.parametrize(
    ("coverage", "compared", "evaluated", "trained", "said"),
    [
        (1.0, verdict(), found(), True, "ok"),
        (None, verdict(), found(), True, "not_quantized"),
        (0.0, verdict(1), found(), False, "not_quantized"),
        (1.0, verdict(1), found(), False, "differs"),
        (1.0, verdict(elements=0), found(), True, "differs"),
        (1.0, verdict(), found(1.0), False, "untrained"),
        (1.0, verdict(), found(0.25), True, "ok"),
        (1.0, verdict(), found(0.26), True, "over_budget"),
        (1.0, verdict(), found(-0.5), True, "ok"),
        (1.0, verdict(), found(0.0, 0.5), True, "ok"),
        (1.0, verdict(), found(0.0, 0.51), True, "over_budget"),
        (1.0, verdict(), found(0.0, math.nan), True, "over_budget"),
    ],
)
def test_the_gravest_word_wins(
    coverage: float | None, compared: Verdict, evaluated: Evaluated, *, trained: bool, said: str
) -> None:
    assert word(coverage, compared, evaluated, Budget(0.25, 0.5), trained=trained) == said


def test_each_model_sees_each_batch_once() -> None:
    split = in_memory((torch.eye(5),), torch.arange(5)).sized(2)
    calls: dict[str, int] = {}

    def counting(name: str, answer: Callable[[Tensor], Tensor]) -> Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]:
        def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            calls[name] = calls.get(name, 0) + 1
            return (answer(inputs[0]),)

        return run

    models = {"float": counting("float", lambda x: x), "ptq": counting("ptq", lambda x: -x)}
    models["deployed"] = counting("deployed", lambda x: x.roll(1, 1))
    for metric, values in ((ACCURACY, (1.0, 0.0, 0.0)), (COSINE, (1.0, -1.0, 0.0))):
        calls.clear()
        seen = evaluate(metric, models, split, SILENT)
        assert tuple(seen.values.values()) == values
        assert calls == {"float": 3, "ptq": 3, "deployed": 3}
        assert (seen.outputs.agreement, seen.outputs.mean_error) == (0.0, 10 / 25)


def test_the_float_model_answers_as_the_graph_does_whatever_it_wraps_its_outputs_in() -> None:
    class Wrapped(nn.Module):
        def forward(self, x: Tensor) -> dict[str, object]:
            return {"b": x, "a": [x + 1, None]}

    assert [float(t) for t in float_run(Wrapped())((torch.tensor(1.0),))] == [1.0, 2.0]


def test_notes_gather_layers_by_reason_and_weights_by_format() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Softmax(1), nn.Linear(4, 4), nn.Softmax(1)).eval()
    x = torch.randn(8, 4)
    made = quantize(net, (x,), calibration=[x], recipe="w8a8-linear-w4")
    assert stored_weights(made) == [{"format": "int4", "values": 32, "bits": 4, "stored_bits": 8}]
    assert notes(made)[-1] == "int4 weights are stored in 8 bits: onnxruntime has no 4-bit kernel"
    assert any("in float: onnxruntime has no integer kernel for `softmax`" in note for note in notes(made))


def test_data_that_does_not_fit_is_named_with_what_would() -> None:
    from exactq.datasets.splits import Dataset

    graph = prepare(nn.Linear(4, 2).eval(), (torch.randn(2, 4),))
    for inputs, said in (
        ((torch.ones(3, 5),), r"gives float32 \(5,\) for input `input`, the model takes float32 \(4,\)"),
        ((torch.ones(3, 4, dtype=torch.int64),), "gives int64"),
        ((torch.ones(3, 4), torch.ones(3, 4)), "gives 2 inputs, the model takes 1: input"),
    ):
        split = in_memory(inputs)
        with pytest.raises(DataError, match=said):
            check_evaluation(Dataset("d", split, split), graph)


def test_plain_data_has_no_number_that_json_lacks() -> None:
    assert plain({"a": [math.nan, (1, -math.inf)], "b": "nan", "c": True}) == {"a": [None, [1, None]], "b": "nan", "c": True}
