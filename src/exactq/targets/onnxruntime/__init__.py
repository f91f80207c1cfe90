"""ONNX Runtime's CPU provider: QDQ files that fuse into QLinear kernels, and their bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from exactq.graphs.graph import Graph
from exactq.kernels.mlas import ISAS
from exactq.targets.onnxruntime import alone, runtime
from exactq.targets.onnxruntime.emit import emit, serialized
from exactq.targets.onnxruntime.lower import lower
from exactq.targets.onnxruntime.rules import NAME, ability
from exactq.targets.target import Runtime, Target


def _open(model: bytes) -> Runtime:
    tracer = runtime.Tracer(model)
    return Runtime(partial(runtime.run, runtime.session(model)), tracer.trace, tracer.operators)


def _timed(model: bytes, threads: int) -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]]:
    return partial(runtime.run, runtime.session(model, threads=threads))


def _file(graph: Graph) -> bytes:
    return serialized(emit(graph))


ONNXRUNTIME = Target(
    name=NAME,
    suffix=".onnx",
    isas=ISAS,
    version=runtime.VERSION,
    ability=ability,
    lower=lower,
    emit=_file,
    detect_isa=runtime.detect_isa,
    open=_open,
    timed=_timed,
    alone=Path(alone.__file__),
)
