"""Two files and back: the same names, the same bits, the same bytes; nothing that is in a file runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from exactq.errors import ModelError
from exactq.graphs.graph import Edit, Graph, op_name
from exactq.graphs.programs import example_inputs, program
from exactq.graphs.store import dumps, load, loads, save, write
from exactq.optimization.pipeline import optimize
from exactq.sources.capture import capture
from exactq.traces import trace


class Everything(nn.Module):
    """Lists, None, dtypes, memory formats, infinities, several results, integers, shared and odd constants."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding="same", bias=False)
        self.lstm = nn.LSTM(8, 3, batch_first=True)
        self.register_buffer("mask", torch.full((8, 8), float("-inf")).triu(1))
        self.register_buffer("halves", torch.ones(8, dtype=torch.float16))

    def forward(self, x: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        y = torch.nn.functional.pad(self.conv(x), (1, 1), value=float("-inf")).clamp(max=1.5)[..., 1:-1]
        z = y.permute(0, 2, 3, 1).contiguous().to(torch.float64, memory_format=torch.channels_last)
        steps, _ = self.lstm(y.mean(1) + self.mask.softmax(-1))
        return {"steps": steps, "z": z, "tokens": tokens + self.halves.long(), "all": y.sum()}


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return capture(Everything(), (torch.randn(2, 2, 8, 8), torch.zeros(2, 8, dtype=torch.long)))


def test_what_is_loaded_computes_the_same_bits_under_the_same_names(graph: Graph, tmp_path: Path) -> None:
    for some in (graph, optimize(graph).graph):
        save(some, tmp_path / "graph.json", tmp_path / "graph.safetensors")
        back = load(tmp_path / "graph.json", tmp_path / "graph.safetensors")
        assert dict(back.names) == dict(some.names)
        assert (back.inputs, back.outputs) == (some.inputs, some.outputs)
        before, after = (trace(program(g), example_inputs(g, 2)) for g in (some, back))
        assert list(before) == list(after)
        assert all(torch.equal(before[k], after[k]) and before[k].dtype == after[k].dtype for k in before)


def test_equal_graphs_give_equal_bytes(graph: Graph) -> None:
    text, tensors = dumps(graph)
    assert dumps(Edit(graph).freeze()) == (text, tensors)
    assert dumps(loads(text, tensors)) == (text, tensors)
    assert b"/" not in text


def test_quantized_graphs_are_stored_too(tmp_path: Path) -> None:
    graph = capture(nn.Linear(4, 3), (torch.randn(2, 4),))
    edit = Edit(graph)
    (linear,) = (n for n in edit if n.op == "call_function")
    (x,) = (n for n in edit if n.op == "placeholder")
    decomposed = torch.ops.quantized_decomposed
    with edit.graph.inserting_before(linear):
        codes = edit.call("codes", decomposed.quantize_per_tensor.default, x, 0.1, 3, 0, 255, torch.uint8)
        reals = edit.call("reals", decomposed.dequantize_per_tensor.default, codes, 0.1, 3, 0, 255, torch.uint8)
    linear.args = (reals, *linear.args[1:])
    some = edit.freeze()
    back = loads(*dumps(some))
    x_value = torch.randn(5, 4)
    assert torch.equal(back.module(x_value)[0], some.module(x_value)[0])
    assert op_name(back.calls[0]) == "quantized_decomposed.quantize_per_tensor"


LAYERS: list[Callable[[], nn.Module]] = [
    lambda: nn.Conv1d(4, 4, 3, padding=1),
    lambda: nn.ReLU6(),
    lambda: nn.Hardtanh(-3.5, 1e-30),
    lambda: nn.AvgPool1d(3, 1, 1),
    lambda: nn.LayerNorm(8, eps=1e-12),
    lambda: nn.Linear(8, 8, bias=False),
    lambda: nn.BatchNorm1d(4),
    lambda: nn.Softmax(-1),
]


@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(range(len(LAYERS))), min_size=1, max_size=5), st.integers(0, 99))
def test_any_network_comes_back_with_the_same_bits(layers: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    graph = capture(nn.Sequential(*(LAYERS[n]() for n in layers)), (torch.randn(2, 4, 8),))
    text, tensors = dumps(graph)
    back = loads(text, tensors)
    x = example_inputs(graph, 3, seed)
    assert torch.equal(back.module(*x)[0], graph.module(*x)[0])
    assert dict(back.names) == dict(graph.names)
    assert dumps(back) == (text, tensors)


@pytest.fixture(scope="module")
def small() -> tuple[dict[str, Any], bytes]:
    text, tensors = dumps(capture(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), (torch.randn(2, 4),)))
    return json.loads(text), tensors


def changed(content: dict[str, Any], path: list[Any], value: Any) -> bytes:
    copy = json.loads(json.dumps(content))
    at = copy
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return json.dumps(copy).encode()


# The nodes of `small`: 0.weight, 0.bias, input, 0 (linear), 1 (relu).
HOSTILE: dict[str, tuple[list[Any], Any, str]] = {
    "a function of the system": (["nodes", 4, "call"], "os.system", "the operator 'os.system' is not allowed"),
    "three parts": (["nodes", 4, "call"], "os.path.join", "the operator 'os.path.join' is not allowed"),
    "a builtin": (["nodes", 4, "call"], "operator.attrgetter", "is not allowed"),
    "another namespace": (["nodes", 4, "call"], "prims.relu.default", "is not allowed"),
    "an operator that writes": (["nodes", 4, "call"], "aten.relu_.default", "it has effects besides its result"),
    "an operator that opens files": (["nodes", 4, "call"], "aten.from_file.default", "it has effects"),
    "an operator that prints": (["nodes", 4, "call"], "aten._print.default", "it has effects"),
    "no operator at all": (["nodes", 4, "call"], "aten.relu.__class__", "is no operator"),
    "an attribute of the namespace": (["nodes", 4, "call"], "aten.__class__.mro", "is "),
    "an unknown operator": (["nodes", 4, "call"], "aten.frobnicate.default", "is unknown to torch"),
    "code in an id": (["nodes", 2, "id"], "x):\n import os\ndef f(y", "is no identifier"),
    "a keyword as id": (["nodes", 2, "id"], "lambda", "is no identifier"),
    "a builtin as id": (["nodes", 2, "id"], "print", "the id 'print' is taken or reserved"),
    "an id twice": (["nodes", 4, "id"], "_0_weight", "is taken or reserved"),
    "a name twice": (["nodes", 4, "name"], "0", "two values of the graph share a name"),
    "a name with a line break": (["nodes", 4, "name"], "a\nb", "is no name"),
    "code in a path": (["nodes", 0, "constant"], "weight'); import os; ('", "cannot be the path of a constant"),
    "a path into the module": (["nodes", 0, "constant"], "forward.__globals__", "cannot be the path of a constant"),
    "a constant that is not there": (["nodes", 0, "constant"], "0.wait", "which the tensors lack"),
    "code in a keyword": (["nodes", 4, "kwargs"], {"x=1);import os;(": 1}, "is no identifier"),
    "an unknown keyword": (["nodes", 4, "kwargs"], {"speed": 1}, r"aten.relu.default 1 arguments and ['speed']"),
    "too many arguments": (["nodes", 4, "args"], [{"node": "linear"}, 1, 2], "aten.relu.default 3 arguments"),
    "too few arguments": (["nodes", 4, "args"], [], "aten.relu.default 0 arguments"),
    "a value from later": (["nodes", 3, "args", 0], {"node": "relu"}, "is no argument"),
    "an unknown kind": (["nodes", 4, "args", 0], {"pickle": "gASV"}, "is no argument"),
    "an unknown dtype": (["nodes", 4, "args", 0], {"dtype": "Tensor"}, "is no argument"),
    "a word for a float": (["nodes", 4, "args", 0], {"float": "1e5"}, "is no argument"),
    "an output from nowhere": (["outputs"], ["x"], "is no argument"),
    "a negative size": (["inputs", 0, "shape"], [-1, 4], "is no list of sizes"),
    "a true size": (["inputs", 0, "shape"], [True, 4], "is no list of sizes"),
    "a batch of yes": (["inputs", 0, "batch"], "yes", "neither true nor false"),
    "an input of another name": (["inputs", 0, "name"], "x", "the graph takes ['input'], but its inputs are ['x']"),
    "an input's dtype": (["inputs", 0, "dtype"], "object", "no graph: KeyError: 'object'"),
    "no nodes": (["nodes"], [], "belong to no constant"),
    "nodes of another type": (["nodes"], 7, "no graph: TypeError"),
    "another version": (["version"], 99, "version 99 of the format; this exactq reads 1"),
    "another format": (["format"], "onnx", "no graph of exactq"),
    "another graph's tensors": (["tensors"], "00", "the tensors are damaged or of another graph"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_refused_with_its_reason(what: str, small: tuple[dict[str, Any], bytes]) -> None:
    content, tensors = small
    path, value, message = HOSTILE[what]
    with pytest.raises(ModelError) as error:
        loads(changed(content, path, value), tensors)
    assert message in str(error.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"format": 1}', b"1" * 5000])
def test_what_is_no_graph_is_refused(text: bytes) -> None:
    with pytest.raises(ModelError):
        loads(text, b"")


def test_damaged_tensors_are_refused_even_with_a_fitting_hash(small: tuple[dict[str, Any], bytes]) -> None:
    content, tensors = small
    for damaged in (tensors[:-4], tensors[:3], b"", b"\xff" * 16, tensors + b"0"):
        with pytest.raises(ModelError, match="damaged or of another graph"):
            loads(json.dumps(content).encode(), damaged)
        hashed = changed(content, ["tensors"], hashlib.sha256(damaged).hexdigest())
        with pytest.raises(ModelError, match="the tensors cannot be read"):
            loads(hashed, damaged)


def test_a_tensor_that_nothing_reads_is_refused(small: tuple[dict[str, Any], bytes]) -> None:
    content, tensors = small
    more = safetensors.torch.save(safetensors.torch.load(tensors) | {"extra": torch.zeros(1)})
    with pytest.raises(ModelError, match=r"the tensors \['extra'\] belong to no constant"):
        loads(changed(content, ["tensors"], hashlib.sha256(more).hexdigest()), more)


@settings(max_examples=150)
@given(data=st.data())
def test_a_file_with_any_byte_changed_is_a_graph_or_an_error_of_the_model(
    data: st.DataObject, small: tuple[dict[str, Any], bytes]
) -> None:
    content, tensors = small
    text = bytearray(json.dumps(content).encode())
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ModelError):
        loads(bytes(text), tensors)


def test_files_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the graph cannot be read: No such file or directory .*graph.json"):
        load(tmp_path / "graph.json", tmp_path / "graph.safetensors")


def test_errors_name_the_file(tmp_path: Path) -> None:
    write(tmp_path / "g.json", b"{}")
    write(tmp_path / "g.safetensors", b"")
    with pytest.raises(ModelError, match=r"^g\.json: no graph of exactq$"):
        load(tmp_path / "g.json", tmp_path / "g.safetensors")


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "graph.json"
    write(path, b"old")

    def killed(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_argument_that_no_file_can_hold_is_an_error_of_the_model() -> None:
    graph = capture(nn.ReLU(), (torch.randn(2, 4),))
    graph.calls[0].args = (graph.calls[0].args[0], 1j)
    with pytest.raises(ModelError, match="'relu' has an argument of type complex, which a graph file cannot hold"):
        dumps(graph)


def test_a_function_that_is_no_operator_is_not_saved_either() -> None:
    graph = capture(nn.ReLU(), (torch.randn(2, 4),))
    graph.calls[0].target = print
    with pytest.raises(ModelError, match="is not allowed: a graph calls aten and quantized_decomposed only"):
        dumps(graph)
