"""Files alone: a model that is read back from what was written for PyTorch's engines, and files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.difference.planted import inputs, made
from tests.targets.networks import WHOLE, Example, batch, quantized

import exactq
from exactq.conversion.files import alone, open_file
from exactq.errors import ModelError
from exactq.explanation import explain_biases
from exactq.plans.plan import Fused
from exactq.quantized import Quantized
from exactq.traces import trace


@pytest.fixture(params=["fbgemm", "qnnpack"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Quantized, Path]:
    quantized = made(request.param)
    return quantized, quantized.export(tmp_path / "model.safetensors")


def test_a_file_has_the_integers_of_the_model_that_it_was_written_from(both: tuple[Quantized, Path]) -> None:
    quantized, path = both
    again = open_file(path)
    assert (again.plan.target, again.artifact()) == (quantized.plan.target, path.read_bytes())
    first, second = (trace(q.program(), inputs()) for q in (quantized, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert exactq.verify(path, [inputs()]).equal
    assert exactq.diff(quantized, path, [inputs()]).equal


def test_its_integers_and_biases_are_explained(both: tuple[Quantized, Path]) -> None:
    quantized, path = both
    mine, its = (exactq.explain(q, "second", (0, 1, 2, 3), inputs=inputs()) for q in (quantized, path))
    assert (its.code, its.steps[:3]) == (mine.code, mine.steps[:3])
    assert {layer.node for layer in exactq.explain_biases(path).layers} == {"first", "second", "last"}


def test_its_float_form_is_what_its_codes_stand_for(both: tuple[Quantized, Path]) -> None:
    quantized, path = both
    again = open_file(path)
    constants = again.float_graph.constants
    assert set(constants) == set(quantized.float_graph.constants)
    weight = quantized.float_graph.constants["second.weight"]
    step = weight.flatten(1).abs().amax(1) / 127
    assert bool(((constants["second.weight"] - weight).flatten(1).abs().amax(1) <= step * 0.51).all())


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    wrong, other = tmp_path / "wrong.safetensors", tmp_path / "model.bin"
    for path in (wrong, other):
        path.write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"wrong.safetensors is no quantized model that exactq reads \(the file is not one"):
        open_file(wrong)
    with pytest.raises(ModelError, match=r"model.bin is no quantized model that exactq reads \(it reads .safetensors\)"):
        exactq.explain(other, "x", (0,))
    floats = tmp_path / "float.safetensors"
    floats.write_bytes(made().target.emit(made().float_graph))
    with pytest.raises(ModelError, match="no value of the model has codes"):
        open_file(floats)


CASES = [
    pytest.param(example, target, recipe, id=f"{example.name}-{target}-{recipe}", marks=() if short else (pytest.mark.slow,))
    for target, recipe in (("fbgemm", "w8a8"), ("qnnpack", "w8a8"), ("onednn", "w8a8"), ("fbgemm", "dynamic"))
    for example in WHOLE
    for short in [example in WHOLE[:4] and target == "fbgemm"]
]


@pytest.mark.parametrize(("example", "target", "recipe"), CASES)
def test_a_file_tells_as_much_as_the_plan_it_came_from(example: Example, target: str, recipe: str) -> None:
    known = quantized(example, target=target, recipe=recipe)
    if not known.coverage():
        pytest.skip("no layer of this network is quantized by the recipe")
    reads = known.target.reads
    assert reads is not None
    again = alone(reads(known.artifact()), target=target, isa=known.plan.isa, by="by the file")
    x = batch(example, 2, 9)
    first, second = (trace(q.program(), x) for q in (known, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert again.coverage() == known.coverage()
    assert [layer.node for layer in explain_biases(again).layers] == [layer.node for layer in explain_biases(known).layers]
    fused = {name: slot.into for name, slot in known.plan.slots.items() if isinstance(slot, Fused)}
    assert {name: slot.into for name, slot in again.plan.slots.items() if isinstance(slot, Fused)} == fused
    assert [str(edge) for edge in again.plan.edges] == [str(edge) for edge in known.plan.edges]
