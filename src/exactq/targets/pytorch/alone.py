"""What a process of its own loads to measure one file's memory: PyTorch and the loader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from exactq.targets.pytorch.emit import read
from exactq.targets.pytorch.inductor import runtime as compiled
from exactq.targets.pytorch.inductor.rules import NAME
from exactq.targets.pytorch.runtime import Loaded, threads


def start() -> None:
    """Make the runtime ready: what PyTorch sets up for its first operator is there afterwards."""
    torch.nn.functional.conv2d(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 1, 1))


def load(model: str, number: int) -> Callable[[Sequence[Any]], object]:
    """The file at the path `model` as a function of arrays in the order of its inputs, on that many threads."""
    data = Path(model).read_bytes()
    engine = read(data).engine
    loaded = compiled.Loaded(data) if engine == NAME else Loaded(engine, data)

    def run(inputs: Sequence[Any]) -> object:
        with threads(number):
            return loaded.run([torch.from_numpy(x) for x in inputs])

    return run
