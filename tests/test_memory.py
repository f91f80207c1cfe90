"""The memory of a file, measured in a process of its own: what counts, what does not, and what it says when it cannot."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from exactq import flow
from exactq.errors import TargetError
from exactq.memory import Memory, memory
from exactq.targets import TARGETS
from exactq.targets.target import Target

MIB = 2**20

COMPILES = {"inductor": 400}
"""Target -> MiB that compiling a file may take besides; half a minute each, so not in the short run."""

EVERY = pytest.mark.parametrize(
    "target", [pytest.param(t, id=n, marks=pytest.mark.slow if n in COMPILES else ()) for n, t in TARGETS.items()]
)

PACKAGE = str(Path(sys.modules["exactq"].__file__ or "").parents[1])

HEAVY = {"onnxruntime": {"torch", "onnx", "sklearn"}}
"""Target -> what its file leaves out. Where PyTorch is the runtime, the loader is our own, and it comes with its package."""


def measured(target: Target, model: bytes, *inputs: np.ndarray) -> Memory:
    return memory(model, inputs, alone=target.alone, suffix=target.suffix, threads=1)


def linear(target: Target, width: int) -> bytes:
    """The float file of one layer of 4·width² bytes of weights."""
    return target.emit(flow.prepare(nn.Linear(width, width), (torch.zeros(2, width),)))


@EVERY
@pytest.mark.runtime
def test_weights_count_and_the_process_that_asks_does_not(target: Target) -> None:
    ballast = np.ones(300 * MIB, np.uint8)  # a child inherits what getrusage says of its parent
    small, large = (measured(target, linear(target, width), np.ones((1, width), np.float32)) for width in (8, 2048))
    assert ballast.all()
    compiling = COMPILES.get(target.name, 0) * MIB
    assert small.peak_bytes < 8 * MIB + compiling
    assert 16 * MIB <= large.resident_bytes <= large.peak_bytes < 160 * MIB + compiling
    assert large.resident_bytes - small.resident_bytes >= 8 * MIB  # its weights, as codes or as reals
    assert small.resident_bytes <= small.peak_bytes


@EVERY
@pytest.mark.runtime
def test_what_a_process_of_its_own_loads_is_light(target: Target) -> None:
    look = f"import runpy, sys; runpy.run_path({str(target.alone)!r})['start'](); import exactq.memory; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], env={"PYTHONPATH": PACKAGE}, capture_output=True, text=True, check=True)
    assert HEAVY.get(target.name, {"sklearn", "torchao"}).isdisjoint(done.stdout.split())


@EVERY
@pytest.mark.runtime
def test_a_file_that_cannot_be_loaded_is_the_targets_error_in_its_words(target: Target) -> None:
    with pytest.raises(TargetError, match=r"of its own could not run the model to measure its memory: .*\w"):
        measured(target, b"no model", np.ones(1, np.float32))


@EVERY
@pytest.mark.runtime
def test_the_file_runs_on_its_inputs_by_position(target: Target, tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a * 2 + b.sum(1)

    path = tmp_path / f"two{target.suffix}"
    path.write_bytes(target.emit(flow.prepare(Two(), (torch.zeros(2), torch.zeros(2, 3)))))
    look = "import runpy, sys, numpy as np; run = runpy.run_path(sys.argv[1])['load'](sys.argv[2], 1); "
    look += "print(run([np.ones(1, np.float32), np.full((1, 3), 5, np.float32)]))"
    command = [sys.executable, "-c", look, str(target.alone), str(path)]
    env = os.environ | {"PYTHONPATH": PACKAGE}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert re.findall(r"\d+\.", done.stdout) == ["17."]
