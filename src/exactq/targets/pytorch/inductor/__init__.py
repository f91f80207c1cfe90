"""The target `inductor`: PT2E's Q/DQ graphs lowered by torch.compile on x86-64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from exactq.targets.pytorch import alone
from exactq.targets.pytorch.emit import emit, graph_for
from exactq.targets.pytorch.inductor.lower import lower
from exactq.targets.pytorch.inductor.rules import NAME, ability
from exactq.targets.pytorch.inductor.runtime import Loaded
from exactq.targets.pytorch.rules import ISAS
from exactq.targets.pytorch.runtime import VERSION, detect_isa, threads
from exactq.targets.target import Runtime, Target


def _open(model: bytes) -> Runtime:
    loaded = Loaded(model)
    return Runtime(loaded.run, loaded.trace, loaded.operators)


def _timed(model: bytes, number: int) -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]]:
    loaded = Loaded(model)

    def run(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with threads(number):
            return loaded.run(inputs)

    return run


INDUCTOR = Target(
    name=NAME,
    suffix=".safetensors",
    isas=ISAS,
    version=VERSION,
    ability=ability,
    lower=lower,
    emit=partial(emit, NAME),
    detect_isa=partial(detect_isa, "onednn"),
    open=_open,
    timed=_timed,
    alone=Path(alone.__file__),
    reads=partial(graph_for, NAME),
)
