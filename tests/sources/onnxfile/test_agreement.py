"""A file that was misread is refused, and the first value that differs is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import fx

from exactq.errors import ModelError
from exactq.graphs.graph import Edit
from exactq.sources import onnxfile
from exactq.sources.onnxfile import OnnxModel
from exactq.targets.onnxruntime import ONNXRUNTIME

from .files import file_of, node, proto, random
from .test_reading import net

pytestmark = pytest.mark.runtime

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def misread(change: Callable[[Edit, dict[str, fx.Node]], None]) -> OnnxModel:
    made = onnxfile.model(file_of(net()))
    edit = Edit(made.graph)
    change(edit, {edit.value(n): n for n in edit})
    return OnnxModel(made.file, edit.freeze(), "")


def with_argument(name: str, index: int, value: Any) -> Callable[[Edit, dict[str, fx.Node]], None]:
    def change(edit: Edit, nodes: dict[str, fx.Node]) -> None:
        args = list(nodes[name].args)
        args[index] = value
        nodes[name].args = tuple(args)

    return change


def test_a_file_that_is_read_right_agrees() -> None:
    onnxfile.check_reading(onnxfile.model(file_of(net())), [X], ONNXRUNTIME.timed)


MISREAD = {
    "an epsilon": (with_argument("n", 7, 2e-3), "another `n` (aten.batch_norm)"),
    "a bound": (with_argument("r", 2, 5.5), "another `r` (aten.clamp)"),
    "a filling": (with_argument("q", 2, 0.5), "another `q` (aten.constant_pad_nd)"),
    "a start": (with_argument("l", 2, 0), "another `l` (aten.slice)"),
    "a weight": (
        lambda edit, nodes: edit.set_constant(nodes["g"], edit.tensor(nodes["g"]) * (1 + 2**-10)),
        "another `y` (aten.linear)",
    ),
}


@pytest.mark.parametrize("name", MISREAD)
def test_the_first_value_that_differs_is_named(name: str) -> None:
    change, said = MISREAD[name]
    made = misread(change)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"off by .* where rounding explains .*nothing is made of it") as told:
        onnxfile.check_reading(made, [X * 3], ONNXRUNTIME.timed)
    assert said in str(told.value)


def test_values_that_are_not_finite_agree_where_they_are_the_same() -> None:
    made = onnxfile.model(file_of(proto([node("Log", "x", "y")], {"x": (1, 3)})))
    onnxfile.check_reading(made, [torch.tensor([[0.0, -1.0, 2.0]])], ONNXRUNTIME.timed)


def test_what_the_runtime_refuses_is_told() -> None:
    model = proto([node("Add", "x c", "y")], {"x": (1, 3)}, {"c": random(3)})
    made = onnxfile.model(file_of(model))
    broken = OnnxModel(replace(made.file, data=b"nothing"), made.graph, "")
    with pytest.raises(ModelError, match=r"m.onnx cannot be run: ONNX Runtime .* cannot load the model"):
        onnxfile.check_reading(broken, [torch.ones(1, 3)], ONNXRUNTIME.timed)
