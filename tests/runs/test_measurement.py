"""What a run measures: one pass over the data, and the verdict's word."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from exactq.datasets.splits import in_memory
from exactq.errors import DataError
from exactq.flow import prepare, quantize
from exactq.metrics import ACCURACY, COSINE
from exactq.runs.measurement import Budget, check_evaluation, evaluate, float_run, notes, plain, stored_weights, word
from exactq.talk import SILENT


def facts(
    coverage: float | None = 1.0, mismatches: int = 0, elements: int = 10, drop: float = 0.0, error: float | None = 0.0
) -> dict[str, Any]:
    return {
        "coverage": coverage,
        "values": {"float": 1.0, "emulated": 1.0, "deployed": 1.0 - drop},
        "verify": {"elements": elements, "mismatches": mismatches},
        "mean_error": error,
    }


@pytest.mark.parametrize(
    ("measured", "trained", "said"),
    [
        (facts(), True, "ok"),
        (facts(None), True, "not_quantized"),
        (facts(0.0, mismatches=1), False, "not_quantized"),
        (facts(mismatches=1), False, "differs"),
        (facts(elements=0), True, "differs"),
        (facts(drop=1.0), False, "untrained"),
        (facts(drop=0.25), True, "ok"),
        (facts(drop=0.26), True, "over_budget"),
        (facts(drop=-0.5), True, "ok"),
        (facts(error=0.5), True, "ok"),
        (facts(error=0.51), True, "over_budget"),
        (facts(error=None), True, "over_budget"),
    ],
)
def test_the_gravest_word_wins(measured: dict[str, Any], *, trained: bool, said: str) -> None:
    assert word(measured, Budget(0.25, 0.5), trained=trained) == said


def test_each_model_sees_each_batch_once() -> None:
    split = in_memory((torch.eye(5),), torch.arange(5)).sized(2)
    calls: dict[str, int] = {}

    def counting(name: str, answer: Callable[[Tensor], Tensor]) -> Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]:
        def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            calls[name] = calls.get(name, 0) + 1
            return (answer(inputs[0]),)

        return run

    models = {"float": counting("float", lambda x: x), "emulated": counting("emulated", lambda x: -x)}
    models["deployed"] = counting("deployed", lambda x: x.roll(1, 1))
    for metric, values in ((ACCURACY, (1.0, 0.0, 0.0)), (COSINE, (1.0, -1.0, 0.0))):
        calls.clear()
        seen = evaluate(metric, models, split, SILENT)
        assert tuple(seen.values.values()) == values
        assert calls == {"float": 3, "emulated": 3, "deployed": 3}
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
