"""The emulator: an engine's calls on the kernels of `exactq.kernels`, the float islands between them explicit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exactq.graphs.graph import Graph
from exactq.kernels import anatomy, aten, fbgemm, onednn, qnnpack
from exactq.kernels.accumulators import channel_scales
from exactq.kernels.anatomy import Anatomy, Held, max_pool
from exactq.numerics.formats import Grid
from exactq.numerics.requantization import scalar_scale
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
from exactq.targets.pytorch.rules import DYNAMIC, ENGINES, GROUPS, OPERATORS
from exactq.traces import Program, Step


def lower(engine: str, graph: Graph, isa: str, *, biases: Held | None = None) -> Program:
    """The emulator of `graph` on an engine, for an instruction set of `rules.ISAS`.

    Steps are named like the graph's nodes: `layer1.0.relu/codes` holds codes. Each step whose bits may differ from the
    engine's says why in `inexact`. With `biases` it is what the engine would answer if it held biases so: QNNPACK holds them as
    `int32`, the others as `float32`.
    """
    steps = []
    for call in calls(graph, engine, OPERATORS[engine], DYNAMIC):
        made = _made(call.what, engine, isa, biases)
        inexact = call.inexact or _undecided(call.what, made.kernel, isa)
        given = (call.name, made.run, call.inputs, made.kernel, call.grid, inexact, call.covers, made.anatomy)
        steps.append(Step(*given, shown=call.shown))
    live = Program(tuple(i.name for i in graph.inputs), tuple(steps), graph.outputs).towards(graph.outputs)
    return replace(live, steps=tuple(mark_inexact(live.steps)))


@dataclass(frozen=True, eq=False)
class Made:
    """A kernel with its constants in place, its name as `library.operator`, and its anatomy where it makes codes."""

    run: Callable[..., Any]
    kernel: str
    anatomy: Anatomy | None = None


LIBRARIES: Mapping[str, Any] = {"fbgemm": fbgemm, "onednn": onednn, "qnnpack": qnnpack, "quantized": aten}
"""The name of a library in those of kernels -> its kernels and their anatomies. ATen's operators are called quantized ones."""

PYTORCHS = {"average_pool": "avg_pool", "adaptive_average_pool": "adaptive_avg_pool", "concat": "cat"}
"""What PyTorch calls an operator, where that is another word than the kernel's."""


def _kernel(library: str, operator: str, *constants: Any, **options: Any) -> Made:
    kernels = LIBRARIES[library]
    run, anatomy = getattr(kernels, operator), kernels.ANATOMIES[operator]
    name = f"{library}.{PYTORCHS.get(operator, operator)}"
    return Made(run(*constants, **options), name, anatomy(*constants, **options))


def _made(what: What, engine: str, isa: str, biases: Held | None) -> Made:
    own = "qnnpack" if engine == "qnnpack" else "quantized"
    match what:
        case Quantize(y):
            return _kernel("quantized", "quantize_per_tensor", y)
        case Dequantize(x):
            return Made(aten.dequantize(x), "quantized.dequantize")
        case Layer():
            return _layer(what, engine, isa, biases)
        case DynamicLayer():
            return _dynamic(what, engine, isa)
        case Pair("add", a, b, y, relu):
            return _broadcast(_kernel(own, "add", a, b, y, relu=relu))
        case Pair(_, a, b, y, relu):
            return _broadcast(_kernel("quantized", "mul", a, b, y, relu=relu))
        case Concat(xs, y, axis):
            return _kernel("quantized", "concat", xs, y, axis=axis)
        case Function("sigmoid", x, y):
            return _kernel("quantized", "sigmoid", x, y)
        case Function("hardswish", x, y):
            return _kernel(own, "hardswish", x, y)
        case Function(_, x, y, slope):
            return _kernel("quantized", "leaky_relu", x, y, slope=slope or 0.0)
        case Average(rank, x, size, stride, padding, counted):
            places = {"kernel": size, "stride": stride, "padding": padding}
            if own == "qnnpack" and rank < 3:
                return _kernel("qnnpack", "average_pool", x, **places)
            return _kernel("quantized", "average_pool", x, **places, count_include_pad=counted, isa=isa)
        case Adaptive(x, output):
            return _kernel(own, "adaptive_average_pool", x, output=output)
        case Largest(op, run, places):
            return Made(run, f"{op} on codes", max_pool(**places))  # type: ignore[arg-type]
        case Mean(x, dims, keep):
            return _kernel("quantized", "mean", x, dims=dims, keep=keep)
        case Moved(op, run, grid, pad, fill):
            if pad is not None:
                code = float(aten.quantize_per_tensor(grid)(torch.tensor([fill])))
                return Made(lambda codes: F.pad(codes, pad, value=code), f"{op} on codes", anatomy.Moved())
            return Made(run, f"{op} on codes", anatomy.Moved())
        case Real(op, run):
            return Made(run, op)


def _layer(what: Layer, engine: str, isa: str, biases: Held | None) -> Made:
    library = ENGINES[engine].libraries[isa][0 if what.rank else 1]
    if engine == "x86" and (what.places.get("groups", 1) > GROUPS or bool(what.w.zero.any())):
        library = "fbgemm"
    bias, where = what.bias, {"isa": isa} if library != "qnnpack" else {"real_bias": biases == "float32"}
    if bias is not None and biases == "int32" and library != "qnnpack":
        bias = on_product_grid(bias, what.x, what.w)
    given = {"x": what.x, "w": what.w, "y": what.y, "relu": what.relu, **what.places, **where}
    if what.added is not None:
        return _kernel(library, "conv_add", what.weight, bias, added=what.added, **given)
    return _kernel(library, "conv" if what.rank else "linear", what.weight, bias, **given)


def _dynamic(what: DynamicLayer, engine: str, isa: str) -> Made:
    library = ENGINES[engine].libraries[isa][1]
    where: dict[str, Any] = {} if library == "qnnpack" else {"reduce_range": what.reduce_range, "isa": isa}
    run = LIBRARIES[library].linear_dynamic(what.weight, what.bias, w=what.w, relu=what.relu, **where)
    return Made(run, f"{library}.linear_dynamic")


def on_product_grid(bias: Tensor, x: Grid, w: Grid) -> Tensor:
    """A real bias (channels,) rounded to the int32 codes of its products' grid, as the reals that these stand for."""
    scale = (scalar_scale(x) * channel_scales(w, bias.numel())).double()
    return ((bias.double() / scale).round().clamp(-(2.0**31), 2.0**31 - 1) * scale).to(torch.float32)


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


def _broadcast(made: Made) -> Made:
    """The kernel on operands of one shape: the loader lays them out so before it calls the engine."""
    return replace(made, run=lambda a, b: made.run(*torch.broadcast_tensors(a, b)))
