"""The emulator: the calls of a compiled module on the kernels of `exactq.kernels`, the float islands between them explicit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exactq.graphs.graph import Graph
from exactq.kernels import inductor, onednn
from exactq.kernels.aten import dequantize, quantize_decomposed
from exactq.targets.lowering import mark_inexact
from exactq.targets.pytorch.calls import (
    Adaptive,
    Average,
    Concat,
    Dequantize,
    DynamicLayer,
    Function,
    Largest,
    Layer,
    Mean,
    Moved,
    Pair,
    Quantize,
    Real,
    What,
    calls,
)
from exactq.targets.pytorch.inductor.rules import NAME, OPERATORS
from exactq.traces import Program, Step


def lower(graph: Graph, isa: str) -> Program:
    """The emulator of `graph` as torch.compile lowers it, for an instruction set of `pytorch.rules.ISAS`.

    Steps are named like the graph's nodes: `layer1.0.relu/codes` holds codes. Each step whose bits may differ from those of
    the compiled module says why in `inexact`.
    """
    steps = []
    for call in calls(graph, NAME, OPERATORS):
        run, kernel = _kernel(call.what, isa)
        inexact = call.inexact or _undecided(call.what, isa)
        steps.append(Step(call.name, run, call.inputs, kernel, call.grid, inexact, call.covers))
    live = Program(tuple(i.name for i in graph.inputs), tuple(steps), graph.outputs).towards(graph.outputs)
    return replace(live, steps=tuple(mark_inexact(live.steps)))


def _kernel(what: What, isa: str) -> tuple[Callable[..., Any], str]:
    match what:
        case Quantize(y):
            return quantize_decomposed(y), "inductor.quantize"
        case Dequantize(x):
            return dequantize(x), "inductor.dequantize"
        case Layer(rank, weight, bias, x, w, y, relu, places, added):
            given: Any = {"x": x, "w": w, "y": y, "relu": relu, "inverted": False, "isa": isa, **places}
            if added is not None:
                return onednn.conv_add(weight, bias, added=added, **given), "onednn.qconv2d_pointwise"
            kernel, name = (onednn.conv, "qconv_pointwise") if rank else (onednn.linear, "qlinear_pointwise")
            return kernel(weight, bias, **given), f"onednn.{name}"
        case Pair(op, a, b, y, relu):
            pair = {"add": inductor.add, "mul": inductor.mul}[op](a, b, y, relu=relu)
            return lambda p, q: pair(*torch.broadcast_tensors(p, q)), f"inductor.{op}"
        case Concat(xs, y, axis):
            return inductor.concat(xs, y, axis=axis), "inductor.cat"
        case Function("hardswish", x, y):
            return inductor.hardswish(x, y), "inductor.hardswish"
        case Function(_, x, y, slope):
            return inductor.leaky_relu(x, y, slope=slope or 0.0), "inductor.leaky_relu"
        case Average(_, x, size, stride, padding, counted):
            pool = inductor.average_pool(x, kernel=size, stride=stride, padding=padding, count_include_pad=counted)
            return pool, "inductor.avg_pool"
        case Adaptive(x, output):
            return inductor.adaptive_average_pool(x, output=output), "inductor.adaptive_avg_pool"
        case Mean(x, dims, keep):
            return inductor.mean(x, dims=dims, keep=keep), "inductor.mean"
        case Largest(op, run, _):
            return run, f"{op} on codes"
        case Moved(op, run, grid, pad, fill):
            return (run if pad is None else _padded(grid, pad, fill)), f"{op} on codes"
        case Real(op, run):
            return run, op
        case DynamicLayer():
            raise AssertionError("no dynamic layer is asked for: `calls` was told of none")


def _padded(grid: Any, pad: tuple[int, ...], fill: float) -> Callable[[Tensor], Tensor]:
    code = float(quantize_decomposed(grid)(torch.tensor([fill])))
    return lambda codes: F.pad(codes, pad, value=code)


def _undecided(what: What, isa: str) -> str | None:
    if isinstance(what, Layer) and what.rank and onednn.undecided(what.weight, what.places["groups"], isa):
        return "oneDNN has two kernels for groups of one input and several outputs, and which one runs is not known"
    if isinstance(what, Layer) and not what.rank and what.weight.shape[1] == 1:
        return "torch.compile multiplies single numbers in float"  # _inductor/decomposition.py: mm
    return None
