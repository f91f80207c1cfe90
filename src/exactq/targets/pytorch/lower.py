"""The emulator: an engine's calls on the kernels of `exactq.kernels`, the float islands between them explicit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from exactq.graphs.graph import Graph
from exactq.kernels import aten, fbgemm, onednn
from exactq.kernels.accumulators import channel_scales
from exactq.kernels.anatomy import Held
from exactq.numerics.formats import Grid
from exactq.numerics.requantization import scalar_scale
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
from exactq.targets.pytorch.made import LIBRARIES, TWO_KERNELS, Made, assembled, broadcast, kernel, largest, moved
from exactq.targets.pytorch.rules import DYNAMIC, ENGINES, GROUPS, OPERATORS
from exactq.traces import Program


def lower(engine: str, graph: Graph, isa: str, *, biases: Held | None = None) -> Program:
    """The emulator of `graph` on an engine, for an instruction set of `rules.ISAS`.

    Steps are named like the graph's nodes: `layer1.0.relu/codes` holds codes. Each step whose bits may differ from the
    engine's says why in `inexact`. With `biases` it is what the engine would answer if it held biases so: QNNPACK holds them as
    `int32`, the others as `float32`.
    """
    return assembled(graph, calls(graph, engine, OPERATORS[engine], DYNAMIC), lambda what: _made(what, engine, isa, biases))


def _made(what: What, engine: str, isa: str, biases: Held | None) -> Made:
    own = "qnnpack" if engine == "qnnpack" else "quantized"
    match what:
        case Quantize(y):
            return kernel("quantized", "quantize_per_tensor", y)
        case Dequantize(x):
            return Made(aten.dequantize(x), "quantized.dequantize")
        case Layer():
            return _layer(what, engine, isa, biases)
        case DynamicLayer():
            return _dynamic(what, engine, isa)
        case Pair("add", a, b, y, relu):
            return broadcast(kernel(own, "add", a, b, y, relu=relu))
        case Pair(_, a, b, y, relu):
            return broadcast(kernel("quantized", "mul", a, b, y, relu=relu))
        case Concat(xs, y, axis):
            return kernel("quantized", "concat", xs, y, axis=axis)
        case Function("sigmoid", x, y):
            return kernel("quantized", "sigmoid", x, y)
        case Function("hardswish", x, y):
            return kernel(own, "hardswish", x, y)
        case Function(_, x, y, slope):
            return kernel("quantized", "leaky_relu", x, y, slope=slope or 0.0)
        case Average(rank, x, size, stride, padding, counted):
            places = {"kernel": size, "stride": stride, "padding": padding}
            if own == "qnnpack" and rank < 3:
                return kernel("qnnpack", "average_pool", x, **places)
            return kernel("quantized", "average_pool", x, **places, count_include_pad=counted, isa=isa)
        case Adaptive(x, output):
            return kernel(own, "adaptive_average_pool", x, output=output)
        case Largest():
            return largest(what)
        case Mean(x, dims, keep):
            return kernel("quantized", "mean", x, dims=dims, keep=keep)
        case Moved(grid=grid):
            return moved(what, aten.quantize_per_tensor(grid))
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
        made = kernel(library, "conv_add", what.weight, bias, added=what.added, **given)
    else:
        made = kernel(library, "conv" if what.rank else "linear", what.weight, bias, **given)
    return replace(made, inexact=_undecided(what, library, isa))


def _dynamic(what: DynamicLayer, engine: str, isa: str) -> Made:
    library = ENGINES[engine].libraries[isa][1]
    where: dict[str, Any] = {} if library == "qnnpack" else {"reduce_range": what.reduce_range, "isa": isa}
    run = LIBRARIES[library].linear_dynamic(what.weight, what.bias, w=what.w, relu=what.relu, **where)
    return Made(run, f"{library}.linear_dynamic")


def on_product_grid(bias: Tensor, x: Grid, w: Grid) -> Tensor:
    """A real bias (channels,) rounded to the int32 codes of its products' grid, as the reals that these stand for."""
    scale = (scalar_scale(x) * channel_scales(w, bias.numel())).double()
    return ((bias.double() / scale).round().clamp(-(2.0**31), 2.0**31 - 1) * scale).to(torch.float32)


def _undecided(what: Layer, library: str, isa: str) -> str | None:
    if library == "onednn" and what.rank and onednn.undecided(what.weight, what.places["groups"], isa):
        return TWO_KERNELS
    if library == "fbgemm" and what.rank and fbgemm.undecided(what.weight.shape, **what.places, isa=isa):
        return "FBGEMM writes over its own results where groups of 2 or 4 channels are left over"
    return None
