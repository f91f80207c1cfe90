"""PyTorch's int8 CPU engines, each a target: fbgemm, x86, onednn and qnnpack; and its compiler, inductor. One folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from exactq.targets.pytorch import alone, runtime
from exactq.targets.pytorch.emit import emit, graph_for
from exactq.targets.pytorch.inductor import INDUCTOR as INDUCTOR
from exactq.targets.pytorch.lower import lower
from exactq.targets.pytorch.rules import ENGINES, ISAS, ability
from exactq.targets.target import Runtime, Target


def _open(engine: str, model: bytes) -> Runtime:
    loaded = runtime.Loaded(engine, model)
    return Runtime(loaded.run, loaded.trace, loaded.operators)


def _timed(engine: str, model: bytes, threads: int) -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]]:
    loaded = runtime.Loaded(engine, model)

    def run(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with runtime.threads(threads):
            return loaded.run(inputs)

    return run


def _target(engine: str) -> Target:
    return Target(
        name=engine,
        suffix=".safetensors",
        isas=ISAS,
        version=runtime.VERSION,
        ability=partial(ability, engine),
        lower=partial(lower, engine),
        emit=partial(emit, engine),
        detect_isa=partial(runtime.detect_isa, engine),
        open=partial(_open, engine),
        timed=partial(_timed, engine),
        alone=Path(alone.__file__),
        reads=partial(graph_for, engine),
    )


FBGEMM, X86, ONEDNN, QNNPACK = (_target(name) for name in ENGINES)
