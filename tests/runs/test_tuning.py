"""Fine-tuning as a stage of a run: when it comes, on what, what it is held against, and that it may fail without a loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from exactq import runs
from exactq.datasets.catalog import load
from exactq.datasets.splits import Batch, Dataset, Streamed, in_memory
from exactq.errors import UsageError
from exactq.runs.tuning import training_for
from exactq.runs.wishes import Wishes

W2 = "weights: int2-narrow\n"


def asked(**wishes: Any) -> Wishes:
    return Wishes("simplecnn", **wishes)


def test_a_training_is_as_long_as_its_data_needs_unless_somebody_says() -> None:
    digits = load("digits")
    training = training_for(asked(), digits, outputs_matter=False)
    assert (training.samples, training.course.epochs, training.source) == (1437, 10, "training")
    assert training_for(asked(epochs=3, train_samples=50), digits, outputs_matter=False).samples == 50
    large = in_memory((torch.zeros(20_000, 1),), torch.zeros(20_000, dtype=torch.int64))
    training = training_for(asked(), Dataset("large", large, large, large), outputs_matter=False)
    assert (training.samples, training.course.epochs) == (8192, 2)


def test_without_training_data_the_calibration_samples_are_trained_on() -> None:
    split = Streamed(lambda: iter([Batch((torch.ones(2, 1),))]))
    training = training_for(asked(), Dataset("stream", split, split), outputs_matter=True)
    assert (training.source, training.samples, training.objective.name) == ("calibration", None, "matching")
    assert training_for(asked(), Dataset("stream", split, split), outputs_matter=False).objective.name == "distillation"
    assert training_for(asked(objective="labels"), load("digits"), outputs_matter=True).objective.name == "labels"


@pytest.mark.runtime
def test_a_run_over_its_budget_is_fine_tuned_and_told_beside_the_quantized_model(tmp_path: Path) -> None:
    (tmp_path / "w2.yaml").write_text(W2)
    facts = runs.run("simplecnn", recipe=str(tmp_path / "w2.yaml"), epochs=3, out=str(tmp_path / "run"))
    metric, training = facts["metric"], facts["training"]
    assert metric["ptq"] < 0.8 < metric["qat"] == metric["deployed"]
    assert (training["helped"], training["objective"], training["float_tuned"]) == (True, "distillation", None)
    assert facts["verify"]["mismatches"] == 0
    assert [len(training["history"]), training["history"][0]["loss"]] == [4, None]
    assert {line["name"] for line in facts["ptq_layers"]} == {line["name"] for line in facts["layers"]}
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["training"]["best"] == training["best"]
    assert [layer for layer in report["layers"] if layer["before_training_db"] is not None]


@pytest.mark.runtime
def test_labels_are_held_against_the_float_model_after_the_same_schedule(tmp_path: Path) -> None:
    (tmp_path / "w2.yaml").write_text(W2)
    wishes = {"recipe": str(tmp_path / "w2.yaml"), "epochs": 1, "train_samples": 256}
    facts = runs.run("simplecnn", objective="labels", out=str(tmp_path / "run"), **wishes)
    assert 0.9 < facts["training"]["float_tuned"] <= 1


@pytest.mark.runtime
def test_never_is_heeded_and_always_trains_within_the_budget_too(tmp_path: Path) -> None:
    (tmp_path / "w2.yaml").write_text(W2)
    never = runs.run("simplecnn", recipe=str(tmp_path / "w2.yaml"), train="never", out=str(tmp_path / "never"))
    assert (never["training"], never["metric"]["qat"], never["verdict"]) == (None, None, "over_budget")
    always = runs.run("simplecnn", train="always", epochs=1, train_samples=64, out=str(tmp_path / "always"))
    assert (always["verdict"], always["training"]["epochs"]) == ("ok", 1)


@pytest.mark.runtime
def test_a_training_that_diverges_leaves_the_quantized_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(scores: Any, labels: Any, *rest: Any, **more: Any) -> torch.Tensor:
        return scores.sum() * float("nan")

    (tmp_path / "w2.yaml").write_text(W2)
    monkeypatch.setattr("exactq.training.objectives.F.kl_div", broken)
    wishes = {"recipe": str(tmp_path / "w2.yaml"), "epochs": 1, "train_samples": 64}
    facts = runs.run("simplecnn", out=str(tmp_path / "run"), **wishes)
    assert facts["training"]["failed"].startswith("the score after epoch 0 is not a number")
    assert (facts["metric"]["qat"], facts["verdict"]) == (None, "over_budget")
    assert facts["metric"]["deployed"] == facts["metric"]["ptq"]


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"train": "allways"}, "did you mean 'always'"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"train_samples": 0}, "--train-samples is 0"),
        ({"objective": "label"}, "did you mean 'labels'"),
    ],
)
def test_wishes_about_training_are_checked(wish: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        asked(**wish)
