"""The compiled module: what torch.compile's answer is, and the codes of every value on the way.

A module is compiled for the shapes of the inputs it is given, once to answer and once more, for traces, to return the codes as
well. Freezing is what lets Inductor pack weights and fuse: without it the same graph runs in float.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from exactq.errors import TargetError
from exactq.targets.pytorch.calls import Real, calls, needed
from exactq.targets.pytorch.emit import read
from exactq.targets.pytorch.inductor.module import compilable
from exactq.targets.pytorch.inductor.rules import NAME, OPERATORS
from exactq.targets.pytorch.runtime import VERSION
from exactq.traces import Trace

SETTINGS = {"freezing": True}
"""What Inductor is told; all else is its own choice."""

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
        return self._answer(inputs, ())

    def trace(self, inputs: Sequence[Tensor]) -> Trace:
        """Every value that exists as codes, by its name."""
        kept = tuple(c.name for c in self.calls if c.grid is not None and not isinstance(c.what, Real))
        return dict(zip(kept, self._answer(inputs, kept)[len(self.graph.outputs) :], strict=True))

    def _answer(self, inputs: Sequence[Tensor], kept: tuple[str, ...]) -> tuple[Tensor, ...]:
        wanted = self.graph.inputs
        if len(inputs) != len(wanted):
            names = ", ".join(i.name for i in wanted)
            raise TargetError(f"the file takes {len(wanted)} inputs ({names}), not {len(inputs)}")
        given = [x.contiguous() for x in inputs]
        key = (bool(kept), torch.get_num_threads(), *((tuple(x.shape), x.dtype) for x in given))
        with torch.no_grad():
            if key not in self.modules:
                self.modules[key] = self._compile(given, kept)
            return tuple(self.modules[key](*given))

    def _compile(self, inputs: Sequence[Tensor], kept: tuple[str, ...]) -> Compiled:
        from torch._inductor import config
        from torch._inductor.utils import run_and_get_code

        compiled = torch.compile(compilable(self.graph, self.calls, kept), fullgraph=True, dynamic=False)
        try:
            # A patch and no option of torch.compile: whether constants are frozen is decided before those hold.
            with config.patch(**SETTINGS):
                _, code = run_and_get_code(compiled, *inputs)
        except RuntimeError as error:
            problem = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            shapes = ", ".join("×".join(map(str, x.shape)) for x in inputs)
            raise TargetError(f"PyTorch {VERSION} cannot compile the file for inputs of {shapes}: {problem}") from error
        if not kept and not self.operators:
            self.operators.update(counted("\n".join(code)))
        return compiled


def counted(code: str) -> dict[str, int]:
    """How often the code that Inductor wrote calls each of oneDNN's and PyTorch's operators, and how many loops it has."""
    called = re.findall(r"torch\.ops\.((?:onednn|quantized|aten|mkldnn)\.\w+)", _body(code))
    loops = re.findall(r"^ +(?:cpp_fused\w*)\(", code, re.MULTILINE)
    counts = Counter(called) | Counter({"loop": len(loops)})
    return dict(sorted((+counts).items()))


def _body(code: str) -> str:
    return "\n".join(line for line in code.splitlines() if not line.lstrip().startswith(("#", "from", "import")))
