"""The Python door: the stages in a row, with what each of them refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.nets import IMAGE, NETS, data, edited
from torch import Tensor, nn

import exactq
from exactq.errors import DataError, UsageError
from exactq.flow import as_tuple, export, given_plan, plan, prepare, quantize, verify
from exactq.numerics.formats import UINT8
from exactq.plans.document import to_yaml
from exactq.plans.plan import Fixed, Float, Own

X = torch.zeros(2, 3, 8, 8)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return NETS["classifier"][0]


@pytest.fixture
def batches() -> list[Tensor]:
    return [batch[0] for batch in data(IMAGE)]


def test_one_call_takes_a_model_to_a_file_that_the_runtime_runs_as_predicted(
    model: nn.Module, batches: list[Tensor], tmp_path: Path
) -> None:
    made = exactq.quantize(model, (X,), calibration=batches)
    path = export(made, tmp_path / "model.onnx")
    assert path.read_bytes() == made.artifact()
    verdict = verify(made, batches, inputs=5)
    assert verdict.equal
    assert verdict.inputs == 5
    assert verify(made.save(tmp_path / "folder"), batches).equal


def test_batches_are_tensors_or_tuples_and_come_once(model: nn.Module, batches: list[Tensor]) -> None:
    told: list[int] = []
    first = quantize(model, (X,), calibration=(b for b in batches), progress=told.append)
    second = quantize(model, (X,), calibration=[(b,) for b in batches])
    assert first.artifact() == second.artifact()
    assert told == [8, 8]
    assert as_tuple([X, X]) == (X, X)


def test_a_plan_says_everything_before_anything_is_computed(model: nn.Module) -> None:
    made = plan(model, (X,), target="onnxruntime@avx2", recipe="portable")
    assert (made.target, made.isa, made.recipe) == ("onnxruntime", "avx2", "portable")
    assert isinstance(made.slots["c.weight"], Own)


def test_an_edited_plan_file_is_carried_out(model: nn.Module, batches: list[Tensor], tmp_path: Path) -> None:
    changed = edited(plan(model, (X,)), {"relu": Fixed(UINT8, 0.05, 0, "mine"), "fc": Float("logits")})
    path = tmp_path / "plan.yaml"
    path.write_text(to_yaml(changed), encoding="utf-8")
    made = quantize(model, (X,), calibration=batches, plan=path)
    assert made.plan == given_plan(str(path)) == changed
    assert made.grids["relu"].scale == torch.tensor(0.05)
    assert "fc" not in made.grids


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "onnxruntme"}, "unknown target 'onnxruntme': did you mean 'onnxruntime'?"),
        ({"target": "onnxruntime@avx3"}, "unknown instruction set of onnxruntime 'avx3': did you mean 'avx2'?"),
        ({"recipe": "w8a"}, "unknown recipe 'w8a': did you mean 'w8a8'?"),
        ({"plan": "no/such/plan.yaml"}, "the plan no/such/plan.yaml cannot be read"),
    ],
)
def test_a_bad_name_is_answered_with_the_right_one(
    model: nn.Module, batches: list[Tensor], options: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError) as error:
        quantize(model, (X,), calibration=batches, **options)  # type: ignore[arg-type]
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "abacus"}, "unknown target 'abacus'"),
        ({"isa": "avx3"}, "unknown instruction set of onnxruntime 'avx3'"),
    ],
)
def test_a_plan_of_another_world_is_refused(
    model: nn.Module, batches: list[Tensor], change: dict[str, str], message: str
) -> None:
    foreign = replace(plan(model, (X,)), **change)  # type: ignore[arg-type]
    with pytest.raises(UsageError) as error:
        quantize(model, (X,), calibration=batches, plan=foreign)
    assert message in str(error.value)


def test_labels_are_no_inputs(model: nn.Module, batches: list[Tensor]) -> None:
    with pytest.raises(DataError, match="a batch has 2 inputs, the model takes 1"):
        quantize(model, (X,), calibration=[(batches[0], torch.zeros(8))])


def test_a_tensor_is_no_list_of_batches(model: nn.Module, batches: list[Tensor]) -> None:
    with pytest.raises(DataError, match="has the shape"):
        quantize(model, (X,), calibration=batches[0])


def test_a_prepared_graph_is_the_models_function(model: nn.Module, batches: list[Tensor]) -> None:
    with torch.no_grad():
        (found,) = prepare(model, (X,)).module(batches[0])
        torch.testing.assert_close(found, model(batches[0]), rtol=0, atol=1e-5)


def test_training_gives_a_model_of_the_same_plan_that_still_verifies(model: nn.Module, batches: list[Tensor]) -> None:
    made = quantize(model, (batches[0][:2],), calibration=batches)
    trained = exactq.train(made, batches, epochs=1, batch=16)
    assert trained.plan == made.plan
    assert verify(trained, batches).equal


@pytest.mark.parametrize(
    ("wishes", "words"),
    [({"objective": "labls"}, "did you mean 'labels'"), ({"epoch": 3}, "did you mean 'epochs'")],
)
def test_a_training_names_what_it_does_not_know(
    model: nn.Module, batches: list[Tensor], wishes: dict[str, str], words: str
) -> None:
    made = quantize(model, (batches[0][:2],), calibration=batches)
    with pytest.raises(UsageError, match=words):
        exactq.train(made, batches, **wishes)
