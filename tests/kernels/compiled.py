"""Cases of `engine_cases` as one Q/DQ graph: torch.compile answers many of them at a time, and exactq's emulator too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.ao.quantization.fx import _decomposed as _registers_the_operators  # noqa: F401

from exactq.graphs.graph import Graph, Input, root_of
from exactq.kernels import onednn
from exactq.targets.pytorch.emit import emit
from exactq.targets.pytorch.inductor.lower import lower
from exactq.targets.pytorch.inductor.rules import NAME
from exactq.targets.pytorch.inductor.runtime import Loaded
from exactq.traces import walk

from .cases import Array
from .engine_cases import Case

_qd: Any = torch.ops.quantized_decomposed
_aten: Any = torch.ops.aten


class _Growing:
    """An fx graph whose nodes get names, inputs and constants as cases are added."""

    def __init__(self) -> None:
        self.graph, self.names = fx.Graph(), dict[str, str]()
        self.constants: dict[str, Tensor] = {}
        self.inputs: list[Input] = []
        self.given: list[Tensor] = []
        self.outputs: list[fx.Node] = []

    def named(self, node: fx.Node, name: str) -> fx.Node:
        self.names[node.name] = name
        return node

    def fed(self, name: str, value: Array) -> fx.Node:
        tensor = torch.from_numpy(value)
        self.inputs.append(Input(name, tuple(tensor.shape), tensor.dtype, batch=False))
        self.given.append(tensor)
        return self.named(self.graph.placeholder(name.replace(".", "_")), name)

    def constant(self, name: str, value: Array) -> fx.Node:
        path = name.replace(".", "_")
        self.constants[path] = torch.from_numpy(value)
        return self.named(self.graph.create_node("get_attr", path), name)

    def call(self, name: str, target: Any, *args: Any) -> fx.Node:
        return self.named(self.graph.call_function(target, args), name)

    def decoded(self, name: str, codes: fx.Node, case: Case, which: str) -> fx.Node:
        at = (case.options[f"s{which}"], case.options[f"z{which}"], 0, 255, torch.uint8)
        return self.call(f"{name}/real", _qd.dequantize_per_tensor.default, codes, *at)

    def encoded(self, name: str, reals: fx.Node, case: Case, which: str) -> fx.Node:
        at = (case.options[f"s{which}"], case.options[f"z{which}"], 0, 255, torch.uint8)
        return self.call(f"{name}/codes", _qd.quantize_per_tensor.default, reals, *at)

    def frozen(self) -> Graph:
        self.graph.output(tuple(self.outputs))
        return Graph(fx.GraphModule(root_of(self.constants), self.graph), self.names, tuple(self.inputs))


def _add(at: _Growing, number: int, case: Case) -> None:
    o, me = case.options, f"case{number}"
    fed = {k: a for k, a in case.arrays.items() if k in ("x", "a", "b") and not (k == "b" and case.op in ("conv", "linear"))}
    codes = {k: at.fed(f"{me}.{k}", a) for k, a in fed.items()}
    if case.op == "quantize":
        at.outputs.append(at.encoded(me, codes["x"], case, "y"))
        return
    reals = {k: at.decoded(f"{me}.{k}", n, case, k) for k, n in codes.items()}
    if case.op == "dequantize":
        at.outputs.append(reals["x"])
        return
    at.outputs.append(at.encoded(me, _operator(at, me, case, reals), case, "y" if "sy" in o else "x"))


def _operator(at: _Growing, me: str, case: Case, reals: dict[str, fx.Node]) -> fx.Node:
    o, x = case.options, reals.get("x")
    places = [list(o[k]) for k in ("kernel", "stride", "padding") if k in o]
    match case.op:
        case "conv" | "linear":
            made = _layer(at, me, case, reals)
        case "add" | "mul":
            made = at.call(me, getattr(_aten, case.op).Tensor, reals["a"], reals["b"])
        case "cat":
            return at.call(me, _aten.cat.default, [reals["a"], reals["b"]], o["axis"])
        case "max_pool":
            return at.call(me, getattr(_aten, f"max_pool{len(places[0])}d").default, x, *places)
        case "avg_pool":
            more = (False, o["count_include_pad"])
            return at.call(me, getattr(_aten, f"avg_pool{len(places[0])}d").default, x, *places, *more)
        case "adaptive_avg_pool":
            return at.call(me, getattr(_aten, f"adaptive_avg_pool{len(o['output'])}d").default, x, list(o["output"]))
        case "mean":
            return at.call(me, _aten.mean.dim, x, list(o["dims"]), o["keep"])
        case "leaky_relu":
            return at.call(me, _aten.leaky_relu.default, x, o["slope"])
        case _:
            return at.call(me, getattr(_aten, case.op).default, x)
    return at.call(f"{me}.relu", _aten.relu.default, made) if o["relu"] else made


def _layer(at: _Growing, me: str, case: Case, reals: dict[str, fx.Node]) -> fx.Node:
    o, w = case.options, case.arrays["w"]
    scales = np.resize(case.arrays["sw"], len(w)).astype(np.float32)
    stored = [at.constant(f"{me}.w", w), at.constant(f"{me}.sw", scales), at.constant(f"{me}.zw", np.zeros(len(w), np.int64))]
    weight = at.call(f"{me}.w/real", _qd.dequantize_per_channel.default, *stored, 0, -128, 127, torch.int8)
    bias = at.constant(f"{me}.bias", case.arrays["bias"]) if "bias" in case.arrays else None
    if case.op == "linear":
        return at.call(me, _aten.linear.default, reals["x"], weight, bias)
    places = [list(o[k]) for k in ("stride", "padding", "dilation")]
    return at.call(me, getattr(_aten, f"conv{w.ndim - 2}d").default, reals["x"], weight, bias, *places, o["groups"])


def decided(case: Case, isa: str) -> bool:
    """Whether the emulator claims to know what comes out."""
    if case.op == "conv":
        return not onednn.undecided(torch.from_numpy(case.arrays["w"]), case.options["groups"], isa)
    return case.op != "linear" or case.arrays["w"].shape[1] > 1


def answers(cases: Sequence[Case], isa: str) -> tuple[list[Tensor], list[Tensor], dict[str, int]]:
    """What one compiled module of all these cases answers, what the emulator does, and what the module calls."""
    growing = _Growing()
    for number, case in enumerate(cases):
        # A relu that its grid does not imply is an operator of its own, and the layer in front of it float.
        ends = {"zy": 0} if case.options.get("relu") else {}
        _add(growing, number, replace(case, options=case.options | ends))
    graph = growing.frozen()
    program, loaded = lower(graph, isa), Loaded(emit(NAME, graph))
    assert not [step.name for step in program.steps if step.inexact]
    found = loaded.run(growing.given)
    expected = walk(program, [x.to(torch.float32) for x in growing.given])  # codes in the storage that kernels leave them in
    return list(found), [y.to(f.dtype) for y, f in zip(expected, found, strict=True)], loaded.operators
