"""The shell door as a function, a finished run to work on, and a user's own Python file."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from exactq import runs
from exactq.cli import main

USER = """
import torch
from torch import nn

def classifier():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, image, vector):
        h = torch.relu(self.a(image)).mean((2, 3)) + torch.relu(self.b(vector))
        return self.c(h), h.softmax(1)

def regressor():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 1), nn.Flatten(0))

def five():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5))

def two():
    print("a factory that prints")
    return Two()

def unquantizable():
    return nn.Softmax(1)

def zero():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    nn.init.zeros_(net[0].weight), nn.init.zeros_(net[0].bias)
    return net

def broken():
    raise RuntimeError("boom")

def infinite():
    net = classifier()
    net[1].weight.data[1, 2] = float("inf")
    return net

def images(value=None):
    g = torch.Generator().manual_seed(0)
    x = [torch.randn(8, 3, 8, 8, generator=g) if value is None else torch.full((8, 3, 8, 8), value) for _ in range(10)]
    return [(part, torch.arange(8) % 3) for part in x]

def far():
    return [(x, torch.arange(8)) for x, _ in images()]

def reals():
    return [(x, torch.rand(8)) for x, _ in images()]

def bare():
    return [x for x, _ in images()]

def bytes_():
    return [((x * 50).to(torch.uint8), y) for x, y in images()]

def pairs():
    return [((x, torch.linspace(-1, 1, 40).reshape(8, 5)), None) for x, _ in images()]

def constant():
    return images(1.0)

def nans():
    return images(float("nan"))

def infs():
    return images(float("-inf"))

def nothing():
    return []

def flat():
    return [x[:, 0] for x, _ in images()]

def distinct(outputs, labels):
    return float(len(outputs.unique()))

def nan(outputs, labels):
    return float("nan")
"""


@dataclass(frozen=True)
class Answer:
    """What a command line came to."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """The last line on stderr, which says what went wrong."""
        return (self.err.splitlines() or [""])[-1]


Shell = Callable[..., Answer]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    """`exactq` in an empty folder; `mine.py`, a user's file, is there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EXACTQ_TRACEBACK", raising=False)
    (tmp_path / "mine.py").write_text(USER)

    def run(*arguments: str) -> Answer:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Answer(ended.value.code, out, err)

    before = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of simplecnn, to be copied."""
    out = tmp_path_factory.mktemp("finished") / "run"
    runs.run("simplecnn", out=str(out))
    return out


@pytest.fixture
def run_folder(finished: Path, tmp_path: Path) -> Path:
    """A run of one's own to tamper with, named `run` in the shell's folder."""
    return shutil.copytree(finished, tmp_path / "run")


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def write_npz(path: Path, **arrays: np.ndarray) -> Path:
    """The file that `numpy.savez` writes."""
    np.savez(path, **arrays)
    return path
