"""The real engine: which arithmetic this machine has, what a file answers, and the codes of every value on the way.

The loader makes the calls of `calls` on PyTorch's quantized tensors and operators, with parameters packed by the engine. Values
lie densely, images with their channels last, as the engines' convolutions leave them.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exactq.errors import TargetError
from exactq.graphs.graph import Graph
from exactq.numerics.formats import Grid
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
    needed,
)
from exactq.targets.pytorch.emit import read
from exactq.targets.pytorch.rules import DYNAMIC, OPERATORS
from exactq.traces import Trace

VERSION = torch.__version__

_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}

_ops: Any = torch.ops.quantized

_DEPRECATED = "torch.quantize_per_tensor, torch.quantize_per_channel and other quantized tensor creation functions"
"""How PyTorch 2.13 warns that its quantized tensors will go: that is known, and said in the README."""


@contextmanager
def engine(name: str) -> Iterator[None]:
    """A context in which PyTorch's quantized engine is `name`; raises `TargetError` where it is not built in."""
    known = torch.backends.quantized.supported_engines
    if name not in known:
        raise TargetError(f"this PyTorch {VERSION} has no quantized engine '{name}', only {', '.join(known)}")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_DEPRECATED, category=UserWarning)
            yield
    finally:
        torch.backends.quantized.engine = before


@contextmanager
def threads(number: int) -> Iterator[None]:
    """A context in which PyTorch runs on so many threads, 0 for as many as it does."""
    before = torch.get_num_threads()
    if number:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def detect_isa(name: str) -> str:
    """The measured instruction set whose arithmetic an engine has here.

    Decided by its own answers to saturating products, one convolution and one linear layer of eight times 255·127, and by the
    vectors that ATen says it takes. Raises `TargetError` where these do not belong together, or on other machines than x86-64.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        raise TargetError(
            f"PyTorch's int8 kernels on {platform.machine()} were not measured: name an instruction set, as in {name}@avx2"
        )
    width, saturates = torch.backends.cpu.get_cpu_capability(), _saturates(name)
    wide, narrow = width.startswith("AVX512"), width == "AVX2"
    if wide and not any(saturates):
        return "avx512vnni"
    if narrow and (all(saturates) or name == "qnnpack"):
        return "avx2"
    raise TargetError(
        f"the kernels of the engine {name} on this machine were not measured: ATen has {width}, and products "
        f"{'saturate' if any(saturates) else 'do not saturate'}; measured are AVX2 without VNNI and AVX512-VNNI"
    )


def _saturates(name: str) -> tuple[bool, bool]:
    with engine(name), torch.no_grad():
        x = torch._make_per_tensor_quantized_tensor(torch.full((1, 8), 255, dtype=torch.uint8), 1.0, 0)
        w = torch._make_per_tensor_quantized_tensor(torch.full((8, 8), 127, dtype=torch.int8), 1.0, 0)
        scale, exact = 8 * 255 * 127 / 200, 200
        linear = _ops.linear(x, _ops.linear_prepack(w, None), scale, 0)
        packed = _ops.conv2d_prepack(w[:, :, None, None], None, [1, 1], [0, 0], [1, 1], 1)
        conv = _ops.conv2d(x[:, :, None, None], packed, scale, 0)
        return int(conv.int_repr().flatten()[0]) != exact, int(linear.int_repr().flatten()[0]) != exact


@dataclass(frozen=True)
class _Ready:
    """A call bound to the engine: its operator's name, and the function of the values it reads."""

    name: str
    operator: str
    run: Callable[..., Any]
    inputs: tuple[str, ...]
    traced: bool


class Loaded:
    """One file in one engine, with all parameters packed."""

    def __init__(self, name: str, data: bytes) -> None:
        made = read(data)
        if made.engine != name:
            raise TargetError(f"the file was made for the engine {made.engine}, not {name}: export the model for {name}")
        self.engine, self.graph = name, made.graph
        with engine(name), torch.no_grad():
            self.ready = tuple(_needed(self.graph, name))

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The outputs for one batch; raises `TargetError` where they do not fit the file."""
        return self._walk(inputs, None)

    def trace(self, inputs: Sequence[Tensor]) -> Trace:
        """Every value that exists as codes, by its name, and the reals in front of dynamic layers and behind them."""
        kept: Trace = {}
        self._walk(inputs, kept)
        return kept

    @property
    def operators(self) -> dict[str, int]:
        """How often each operator is called."""
        counts: dict[str, int] = {}
        for ready in self.ready:
            counts[ready.operator] = counts.get(ready.operator, 0) + 1
        return dict(sorted(counts.items()))

    def _walk(self, inputs: Sequence[Tensor], kept: Trace | None) -> tuple[Tensor, ...]:
        wanted = self.graph.inputs
        if len(inputs) != len(wanted):
            names = ", ".join(i.name for i in wanted)
            raise TargetError(f"the file takes {len(wanted)} inputs ({names}), not {len(inputs)}")
        values: dict[str, Any] = {i.name: x for i, x in zip(wanted, inputs, strict=True)}
        with engine(self.engine), torch.no_grad():
            for ready in self.ready:
                try:
                    value = ready.run(*(values[name] for name in ready.inputs))
                except RuntimeError as error:
                    problem = str(error).strip().splitlines()[0]
                    raise TargetError(f"PyTorch {VERSION} fails in `{ready.name}` ({ready.operator}): {problem}") from error
                values[ready.name] = value
                if kept is not None and ready.traced:
                    kept[ready.name] = value.int_repr() if value.is_quantized else value
        return tuple(values[name] for name in self.graph.outputs)


def _needed(graph: Graph, name: str) -> Iterator[_Ready]:
    """The calls that the outputs need, bound, in order."""
    for call in needed(calls(graph, name, OPERATORS[name], DYNAMIC), graph.outputs):
        operator, run = _bound(call.what)
        traced = call.shown or call.grid is not None and not isinstance(call.what, Real)
        yield _Ready(call.name, operator, run, call.inputs, traced)


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=_LAYOUTS.get(x.ndim, torch.contiguous_format))


def _one_by_one(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`run` on one thread and dense operands of one shape: codes left over at the end of a thread's part round otherwise."""

    def alone(*operands: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(*(x.shape for x in operands))
        with threads(1):
            return run(*(_dense(x.expand(shape)) for x in operands))

    return alone


def _bound(what: What) -> tuple[str, Callable[..., Any]]:
    """The operator's name, and the call as a function of quantized tensors and reals."""
    match what:
        case Quantize(y):
            scale, zero = _at(y)
            return "quantize_per_tensor", lambda x: torch.quantize_per_tensor(_dense(x), scale, zero, torch.quint8)
        case Dequantize():
            return "dequantize", lambda x: _dense(x).dequantize()
        case Layer():
            return _layer(what)
        case DynamicLayer():
            return _dynamic(what)
        case Pair(op, y=y, relu=relu):
            name = f"{op}_relu" if relu else op
            operator, at = getattr(_ops, name), _at(y)
            return f"quantized::{name}", _one_by_one(lambda a, b: operator(a, b, *at))
        case Concat(y=y, axis=axis):
            at = _at(y)
            return "quantized::cat", lambda *xs: _ops.cat([_dense(x) for x in xs], axis, *at)
        case Function(op, y=y, slope=slope):
            at, more, operator = _at(y), (() if slope is None else (slope, False)), getattr(_ops, op)
            return f"quantized::{op}", _one_by_one(lambda x: operator(x, *more, *at))
        case Average(rank, _, kernel, stride, padding, counted):
            pool: Any = getattr(F, f"avg_pool{rank}d")
            return f"avg_pool{rank}d", lambda x: pool(_dense(x), kernel, stride, padding, False, counted)
        case Adaptive(output=output):
            adaptive: Any = getattr(F, f"adaptive_avg_pool{len(output)}d")
            return f"adaptive_avg_pool{len(output)}d", lambda x: adaptive(_dense(x), output)
        case Mean(_, dims, keep):
            # Axes that lie last in memory, too, are summed as integers, others in float; and QNNPACK has a mean of its own for
            # axes that are called 2 and 3, but not for -2 and -1.
            return "mean", lambda x: torch.mean(x.contiguous(), dims, keepdim=keep)
        case Moved("aten.constant_pad_nd" as op, run):
            # Quantized copies of images with three axes work in plain order alone (torch 2.13).
            return op.removeprefix("aten."), lambda x: run(x.contiguous())
        case Largest(op, run) | Moved(op, run):
            return op.removeprefix("aten."), lambda x: run(_dense(x))
        case Real(op, run):
            return op, run


def _at(grid: Grid) -> tuple[float, int]:
    return float(grid.scale), int(grid.zero)


def _parameters(what: Layer | DynamicLayer) -> tuple[Tensor, Tensor | None]:
    """Weight and bias as an engine packs them."""
    codes, bias = what.weight.contiguous(), None if what.bias is None else what.bias.to(torch.float32).contiguous()
    scale = what.w.scale
    if scale.ndim:
        zeros = what.w.zero.flatten().to(torch.int64)
        return torch._make_per_channel_quantized_tensor(codes, scale.flatten().double(), zeros, 0), bias
    return torch._make_per_tensor_quantized_tensor(codes, float(scale), int(what.w.zero)), bias


def _dynamic(what: DynamicLayer) -> tuple[str, Callable[..., Any]]:
    packed, name = _ops.linear_prepack(*_parameters(what)), "linear_relu_dynamic" if what.relu else "linear_dynamic"
    linear, reduced = getattr(_ops, name), what.reduce_range

    def apply(x: Tensor) -> Tensor:
        return linear(_dense(x[None]), packed, reduced)[0] if x.ndim == 1 else linear(_dense(x), packed, reduced)

    return f"quantized::{name}", apply


def _layer(what: Layer) -> tuple[str, Callable[..., Any]]:
    weight, bias = _parameters(what)
    at, ending = _at(what.y), "_relu" if what.relu else ""
    if what.added is not None:
        ending = f"_add{ending}"
    if not what.rank:
        packed, linear = _ops.linear_prepack(weight, bias), getattr(_ops, f"linear{ending}")

        def apply(x: Tensor) -> Tensor:
            # FBGEMM takes no single vector.
            return linear(_dense(x[None]), packed, *at)[0] if x.ndim == 1 else linear(_dense(x), packed, *at)

        return f"quantized::linear{ending}", apply
    name, places = f"conv{what.rank}d", what.places
    parameters = (list(places["stride"]), list(places["padding"]), list(places["dilation"]), places["groups"])
    packed, conv = getattr(_ops, f"{name}_prepack")(weight, bias, *parameters), getattr(_ops, f"{name}{ending}")
    if what.added is not None:
        # The sum is written over the codes that are added, and these may be read again.
        return f"quantized::{name}{ending}", lambda x, added: conv(_dense(x), _dense(added).clone(), packed, *at)
    return f"quantized::{name}{ending}", lambda x: conv(_dense(x), packed, *at)
