"""A batch of one becomes any batch where no operator mixes samples, and stays where one might."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from exactq.errors import DataError, ModelError
from exactq.sources import onnxfile

from .cases import ints
from .files import file_of, imported, node, proto, random

ROWS = {"x": (1, 4, 6)}
W = random(6, 6)


def flattened_rows(batch: int | str, *, inner: int) -> onnx.ModelProto:
    """Rows of all samples in one matrix, and back, as matrix products are often written."""
    nodes = [node("Reshape", "x flat", "f"), node("MatMul", "f w", "m"), node("Relu", "m", "r"), node("Reshape", "r back", "y")]
    return proto(nodes, {"x": (batch, 4, 6)}, {"flat": ints(-1, 6), "w": W, "back": ints(inner, 4, 6)})


@pytest.mark.runtime
@pytest.mark.parametrize("batch", ["N", 1, 2])
def test_rows_of_all_samples_in_one_matrix_are_still_apart(batch: int | str) -> None:
    made = imported(flattened_rows(batch, inner=-1), samples=4)
    assert made.graph.inputs[0].batch, made.note
    x = torch.randn(3, 4, 6)
    assert torch.allclose(made(x), torch.relu(x @ torch.from_numpy(W)), atol=1e-5)


MIXED: dict[str, tuple[onnx.ModelProto, str]] = {
    "softmax over samples": (
        proto([node("Softmax", "x", "y", axis=0)], ROWS),
        r"`y` \(aten.softmax\) works across the samples",
    ),
    "softmax over rows of samples": (
        proto(
            [node("Reshape", "x s", "f"), node("Softmax", "f", "z", axis=0), node("Reshape", "z t", "y")],
            ROWS,
            {"s": ints(4, 6), "t": ints(1, 4, 6)},
        ),
        r"`z` \(aten.softmax\) works across the samples",
    ),
    "mean over samples": (proto([node("ReduceMean", "x", "y", axes=[0])], ROWS), "works across the samples"),
    "a value a sample": (
        proto([node("Add", "x c", "y")], {"x": (2, 3)}, {"c": random(2, 1)}),
        "reads a constant with a value for each sample",
    ),
    "turned round": (proto([node("Transpose", "x", "y", perm=[1, 0, 2])], ROWS), "the output `y` has not one row a sample"),
    "turned and multiplied": (
        proto([node("Transpose", "x", "t", perm=[1, 2, 0]), node("MatMul", "t c", "y")], ROWS, {"c": random(1, 3)}),
        "may add up over the samples",
    ),
    "samples beside each other": (
        proto([node("Transpose", "x", "t", perm=[1, 0, 2]), node("Add", "x t", "y")], {"x": (2, 2, 2)}),
        "samples lie in different ways",
    ),
    "samples taken apart": (
        proto([node("Transpose", "x", "t", perm=[1, 0, 2]), node("Reshape", "t s", "y")], {"x": (2, 3, 5)}, {"s": ints(2, 15)}),
        "takes the samples apart",
    ),
    "one sample taken": (proto([node("Slice", "x a b", "y")], {"x": (3, 5)}, {"a": ints(0), "b": ints(1)}), "works across"),
    "a sum of the outputs": (proto([node("ReduceSum", "x", "y", keepdims=0)], ROWS), "works across the samples"),
    "normalised over all": (
        proto([node("LayerNormalization", "x s", "y", axis=0)], {"x": (2, 3)}, {"s": random(2, 3)}),
        "normalises across the samples",
    ),
    "inputs of other numbers": (proto([node("Add", "x z", "y")], {"x": (2, 3), "z": (1, 3)}), "not the same first dimension"),
}


@pytest.mark.parametrize("name", MIXED)
def test_what_may_mix_samples_keeps_its_batch_and_says_why(name: str) -> None:
    model, said = MIXED[name]
    made = onnxfile.model(file_of(model))
    assert not any(i.batch for i in made.graph.inputs)
    assert said.replace("\\", "") in made.note


def test_a_free_batch_that_the_model_computes_with_is_one() -> None:
    nodes = [node("Size", "x", "n"), node("Cast", "n", "f", to=1), node("Div", "x f", "y")]
    made = onnxfile.model(file_of(proto(nodes, {"x": ("N", 5)})))
    assert made.note == "only batches of 1: it computes with the number of samples"
    assert made.graph.inputs[0].shape == (1, 5)
    assert torch.equal(made(torch.ones(1, 5)), torch.full((1, 5), 0.2))


def test_a_size_that_the_file_leaves_free_comes_from_the_data() -> None:
    file = file_of(proto([node("GlobalMaxPool", "x", "y")], {"x": ("N", 3, "h", "w")}))
    assert onnxfile.model(file, [(3, 5, 7)]).graph.inputs[0].shape[1:] == (3, 5, 7)
    with pytest.raises(ModelError, match="leaves sizes of its input `x` free: the data or --input-shape says them"):
        onnxfile.model(file)
    with pytest.raises(DataError, match="the input `x` has 4 dimensions, the data 2"):
        onnxfile.model(file, [(3,)])
    with pytest.raises(DataError, match=r"takes 1 inputs \(x\), and 2 are given"):
        onnxfile.model(file, [(3, 5, 7), (1,)])


def test_a_batch_of_two_is_the_same_for_three() -> None:
    model = proto([node("Reshape", "x s", "f"), node("Gemm", "f w", "y")], {"x": (2, 2, 3)}, {"s": ints(2, 6), "w": W})
    made = onnxfile.model(file_of(model))
    x = torch.randn(3, 2, 3)
    assert made(x).shape == (3, 6)
    assert np.allclose(made(x)[:2].numpy(), made(x[:2]).numpy(), atol=1e-5)
