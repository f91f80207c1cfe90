"""The compiled module: what torch.compile's answer is, and the codes of every value on the way.

A module is compiled for the shapes of the inputs it is given, once to answer and once more, for traces, to return the codes as
well. Freezing is what lets Inductor pack weights and fuse: without it the same graph runs in float.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from exactq.errors import TargetError
from exactq.targets.pytorch.calls import Layer, Real, calls, needed
from exactq.targets.pytorch.emit import read
from exactq.targets.pytorch.inductor.module import compilable
from exactq.targets.pytorch.inductor.rules import NAME, OPERATORS
from exactq.targets.pytorch.runtime import VERSION
from exactq.traces import Trace

SETTINGS: dict[str, Any] = {"freezing": True}
"""What Inductor is told; all else is its own choice."""

_OWN = (
    ("To copy construct from a tensor", UserWarning),  # _inductor/mkldnn_lowerings.py
    (r"`torch\.jit\.", DeprecationWarning),  # what Inductor imports
)
"""How PyTorch 2.13 warns of its own code while it compiles."""

Compiled = Callable[..., tuple[Tensor, ...]]


def compiler() -> str:
    """The C++ compiler that torch.compile takes; raises `TargetError` where there is none."""
    from torch._inductor import cpp_builder, exc

    try:
        return str(cpp_builder.get_cpp_compiler())
    except exc.InvalidCxxCompiler as error:
        raise TargetError(
            "inductor compiles models to C++ and finds no compiler: install g++ or clang++, or name one in the variable CXX"
        ) from error


class Loaded:
    """One file, compiled for each shape of inputs when it is first asked for. `operators` counts what the first module runs."""

    def __init__(self, data: bytes) -> None:
        made = read(data)
        if made.engine != NAME:
            raise TargetError(f"the file was made for the engine {made.engine}, not {NAME}: export the model for {NAME}")
        compiler()
        self.graph = made.graph
        self.calls = needed(calls(self.graph, NAME, OPERATORS), self.graph.outputs)
        self.operators: dict[str, int] = {}
        self.modules: dict[Any, Compiled] = {}

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The outputs for one batch; raises `TargetError` where they do not fit the file."""
        given, module = self._ready(inputs, ())
        with torch.no_grad():
            return tuple(module(*given))

    def trace(self, inputs: Sequence[Tensor]) -> Trace:
        """Every value that exists as codes, by its name.

        Codes that a sum is written over cannot be returned too, for Inductor fuses no sum whose operand is read again: they are
        copied when the fused convolution is called.
        """
        over = {sum_of(c.what): c.inputs[1] for c in self.calls if isinstance(c.what, Layer) and c.what.added is not None}
        coded = (c.name for c in self.calls if c.grid is not None and not isinstance(c.what, Real))
        kept = tuple(name for name in coded if name not in over.values())
        given, module = self._ready(inputs, kept)
        with watched() as added, torch.no_grad():
            codes = module(*given)[len(self.graph.outputs) :]
        return dict(zip(kept, codes, strict=True)) | {over[key]: value for key, value in added.items() if key in over}

    def _ready(self, inputs: Sequence[Tensor], kept: tuple[str, ...]) -> tuple[list[Tensor], Compiled]:
        """The inputs as the module takes them, and the module for their shapes."""
        wanted = self.graph.inputs
        if len(inputs) != len(wanted):
            names = ", ".join(i.name for i in wanted)
            raise TargetError(f"the file takes {len(wanted)} inputs ({names}), not {len(inputs)}")
        given = [x.contiguous() for x in inputs]
        key = (bool(kept), torch.get_num_threads(), *((tuple(x.shape), x.dtype) for x in given))
        if key not in self.modules:
            with torch.no_grad():
                self.modules[key] = self._compile(given, kept)
        return given, self.modules[key]

    def _compile(self, inputs: Sequence[Tensor], kept: tuple[str, ...]) -> Compiled:
        from torch._inductor import config
        from torch._inductor.utils import run_and_get_code

        compiled = torch.compile(compilable(self.graph, self.calls, kept), fullgraph=True, dynamic=False)
        try:
            # A patch and no option of torch.compile: whether constants are frozen is decided before those hold.
            with config.patch(SETTINGS), warnings.catch_warnings():
                for message, category in _OWN:
                    warnings.filterwarnings("ignore", message=message, category=category)
                _, code = run_and_get_code(compiled, *inputs)
        except RuntimeError as error:
            told = [line for line in str(error).splitlines() if line.strip() and not line.endswith("raised:")]
            problem = told[0] if told else type(error).__name__
            shapes = ", ".join("×".join(map(str, x.shape)) for x in inputs)
            raise TargetError(f"PyTorch {VERSION} cannot compile the file for inputs of {shapes}: {problem}") from error
        if not kept and not self.operators:
            self.operators.update(counted("\n".join(code)))
        return compiled


Sum = tuple[float, int, float, int]
"""Scale and zero of a sum, and of the codes that are added."""


def sum_of(layer: Layer) -> Sum:
    """What tells a fused sum from others."""
    assert layer.added is not None
    return (layer.y.scale.item(), int(layer.y.zero), layer.added.scale.item(), int(layer.added.zero))


@contextmanager
def watched() -> Iterator[dict[Sum, Tensor]]:
    """A context that keeps a copy of the codes which each fused convolution adds; of two with the same grids none."""
    packet: Any = torch.ops.onednn.qconv2d_pointwise
    operator = packet.binary_tensor
    places = {argument.name: place for place, argument in enumerate(operator._schema.arguments)}
    found: dict[Sum, Tensor] = {}
    twice: set[Sum] = set()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def watch(*args: Any) -> Any:
        at = places["output_scale"], places["output_zero_point"], places["accum_scale"], places["accum_zero_point"]
        key = (args[at[0]], args[at[1]], args[at[2]], args[at[3]])
        if key in found:
            twice.add(key)
        found[key] = args[places["qaccum"]].clone()
        return operator(*args)

    packet.binary_tensor = watch
    try:
        yield found
    finally:
        packet.binary_tensor = operator
        for key in twice:
            del found[key]


def counted(code: str) -> dict[str, int]:
    """How often the code that Inductor wrote calls each of oneDNN's and PyTorch's operators, and how many loops it has."""
    called = re.findall(r"torch\.ops\.((?:onednn|quantized|aten|mkldnn)\.\w+)", _body(code))
    loops = re.findall(r"^ +(?:cpp_fused\w*)\(", code, re.MULTILINE)
    counts = Counter([*called, *["loop"] * len(loops)])
    return dict(sorted(counts.items()))


def _body(code: str) -> str:
    return "\n".join(line for line in code.splitlines() if not line.lstrip().startswith(("#", "from", "import")))
