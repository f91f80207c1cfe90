"""The emulator: the calls of a compiled module on the kernels of `exactq.kernels`, the float islands between them explicit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from exactq.graphs.graph import Graph
from exactq.kernels import inductor, onednn
from exactq.kernels.aten import dequantize
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
from exactq.targets.pytorch.made import TWO_KERNELS, Made, assembled, broadcast, kernel, largest, moved
from exactq.traces import Program


def lower(graph: Graph, isa: str) -> Program:
    """The emulator of `graph` as torch.compile lowers it, for an instruction set of `pytorch.rules.ISAS`.

    Steps are named like the graph's nodes: `layer1.0.relu/codes` holds codes. Each step whose bits may differ from those of
    the compiled module says why in `inexact`.
    """
    return assembled(graph, calls(graph, NAME, OPERATORS), lambda what: _made(what, isa))


def _made(what: What, isa: str) -> Made:
    match what:
        case Quantize(y):
            return kernel(NAME, "quantize", y)
        case Dequantize(x):
            return Made(dequantize(x), f"{NAME}.dequantize")
        case Layer():
            return _layer(what, isa)
        case Pair(op, a, b, y, relu):
            return broadcast(kernel(NAME, op, a, b, y, relu=relu))
        case Concat(xs, y, axis):
            return kernel(NAME, "concat", xs, y, axis=axis)
        case Function("hardswish", x, y):
            return kernel(NAME, "hardswish", x, y)
        case Function(_, x, y, slope):
            return kernel(NAME, "leaky_relu", x, y, slope=slope or 0.0)
        case Average(_, x, size, stride, padding, counted):
            places = {"kernel": size, "stride": stride, "padding": padding}
            return kernel(NAME, "average_pool", x, **places, count_include_pad=counted)
        case Adaptive(x, output):
            return kernel(NAME, "adaptive_average_pool", x, output=output)
        case Mean(x, dims, keep):
            return kernel(NAME, "mean", x, dims=dims, keep=keep)
        case Largest():
            return largest(what)
        case Moved(grid=grid):
            return moved(what, inductor.quantize(grid))
        case Real(op, run):
            return Made(run, op)
        case DynamicLayer():
            raise AssertionError("no dynamic layer is asked for: `calls` was told of none")


def _layer(what: Layer, isa: str) -> Made:
    given: dict[str, Any] = {"x": what.x, "w": what.w, "y": what.y, "relu": what.relu, "inverted": False, "isa": isa}
    given |= what.places
    if what.added is not None:
        made, name = kernel("onednn", "conv_add", what.weight, what.bias, added=what.added, **given), "qconv2d_pointwise"
    else:
        made = kernel("onednn", "conv" if what.rank else "linear", what.weight, what.bias, **given)
        name = "qconv_pointwise" if what.rank else "qlinear_pointwise"
    return replace(made, kernel=f"onednn.{name}", inexact=_undecided(what, isa))


def _undecided(what: Layer, isa: str) -> str | None:
    if what.rank:
        return TWO_KERNELS if onednn.undecided(what.weight, what.places["groups"], isa) else None
    if what.weight.shape[1] == 1:
        return "torch.compile multiplies single numbers in float"  # _inductor/decomposition.py: mm
    return None
