"""The emulator: an engine's calls on the kernels of `exactq.kernels`, the float islands between them explicit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exactq.graphs.graph import Graph
from exactq.kernels import aten, fbgemm, onednn, qnnpack
from exactq.targets.lowering import mark_inexact
from exactq.targets.pytorch.calls import (
    Adaptive,
    Average,
    Concat,
    Dequantize,
    Function,
    Layer,
    Mean,
    Moved,
    Pair,
    Quantize,
    Real,
    What,
    calls,
)
from exactq.targets.pytorch.rules import ENGINES, GROUPS, OPERATORS
from exactq.traces import Program, Step


def lower(engine: str, graph: Graph, isa: str) -> Program:
    """The emulator of `graph` on an engine, for an instruction set of `rules.ISAS`.

    Steps are named like the graph's nodes: `layer1.0.relu/codes` holds codes. Each step whose bits may differ from the
    engine's says why in `inexact`.
    """
    steps = []
    for call in calls(graph, engine, OPERATORS[engine]):
        run, kernel = _kernel(call.what, engine, isa)
        inexact = call.inexact or _undecided(call.what, kernel, isa)
        steps.append(Step(call.name, run, call.inputs, kernel, call.grid, inexact, call.covers))
    live = Program(tuple(i.name for i in graph.inputs), tuple(steps), graph.outputs).towards(graph.outputs)
    return replace(live, steps=tuple(mark_inexact(live.steps)))


Made = tuple[Callable[..., Any], str]
"""A kernel, and its name as `library.operator`."""


def _kernel(what: What, engine: str, isa: str) -> Made:
    qnn = engine == "qnnpack"
    match what:
        case Quantize(y):
            return aten.quantize_per_tensor(y), "quantized.quantize_per_tensor"
        case Dequantize(x):
            return aten.dequantize(x), "quantized.dequantize"
        case Layer():
            return _layer(what, engine, isa)
        case Pair("add", a, b, y, relu):
            kernel = qnnpack.add(a, b, y, relu=relu) if qnn else aten.add(a, b, y, relu=relu)
            return _broadcast(kernel), "qnnpack.add" if qnn else "quantized.add"
        case Pair(_, a, b, y, relu):
            return _broadcast(aten.mul(a, b, y, relu=relu)), "quantized.mul"
        case Concat(xs, y, axis):
            return aten.concat(xs, y, axis=axis), "quantized.cat"
        case Function("sigmoid", x, y):
            return aten.sigmoid(x, y), "quantized.sigmoid"
        case Function("hardswish", x, y):
            return (qnnpack if qnn else aten).hardswish(x, y), f"{'qnnpack' if qnn else 'quantized'}.hardswish"
        case Function(_, x, y, slope):
            return aten.leaky_relu(x, y, slope=slope or 0.0), "quantized.leaky_relu"
        case Average(rank, x, size, stride, padding, counted):
            if qnn and rank < 3:
                return qnnpack.average_pool(x, kernel=size, stride=stride, padding=padding), "qnnpack.avg_pool"
            pool = aten.average_pool(x, kernel=size, stride=stride, padding=padding, count_include_pad=counted, isa=isa)
            return pool, "quantized.avg_pool"
        case Adaptive(x, output):
            library = qnnpack if qnn else aten
            return library.adaptive_average_pool(x, output=output), f"{'qnnpack' if qnn else 'quantized'}.adaptive_avg_pool"
        case Mean(x, dims, keep):
            return aten.mean(x, dims=dims, keep=keep), "quantized.mean"
        case Moved(op, run, grid, pad, fill):
            if pad is None:
                return run, f"{op} on codes"
            code = float(aten.quantize_per_tensor(grid)(torch.tensor([fill])))
            return lambda codes: F.pad(codes, pad, value=code), f"{op} on codes"
        case Real(op, run):
            return run, op


def _layer(what: Layer, engine: str, isa: str) -> Made:
    library = ENGINES[engine].libraries[isa][0 if what.rank else 1]
    if engine == "x86" and what.places.get("groups", 1) > GROUPS:
        library = "fbgemm"
    kernels: Any = {"fbgemm": fbgemm, "onednn": onednn, "qnnpack": qnnpack}[library]
    operator = "conv" if what.rank else "linear"
    where = {} if library == "qnnpack" else {"isa": isa}
    given = {"x": what.x, "w": what.w, "y": what.y, "relu": what.relu, **what.places, **where}
    if what.added is not None:
        return onednn.conv_add(what.weight, what.bias, added=what.added, **given), "onednn.conv_add"
    return getattr(kernels, operator)(what.weight, what.bias, **given), f"{library}.{operator}"


def _undecided(what: What, kernel: str, isa: str) -> str | None:
    if (
        isinstance(what, Layer)
        and kernel.startswith("onednn.conv")
        and onednn.undecided(what.weight, what.places["groups"], isa)
    ):
        return "oneDNN has two kernels for groups of one input and several outputs, and which one runs is not known"
    if isinstance(what, Layer) and kernel == "fbgemm.conv" and fbgemm.undecided(what.weight.shape, **what.places, isa=isa):
        return "FBGEMM writes over its own results where groups of 2 or 4 channels are left over"
    return None


def _broadcast(kernel: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The kernel on operands of one shape: the loader lays them out so before it calls the engine."""
    return lambda a, b: kernel(*torch.broadcast_tensors(a, b))
