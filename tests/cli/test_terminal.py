"""exactq on a terminal, and interrupted: in a process of its own, through a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SLOW = """
import time
from exactq.datasets.digits import digits

def images():
    open("begun", "w").close()
    time.sleep(60)
"""


def _controlled() -> None:
    """The new session's terminal is that of its stdin, so that Ctrl-C there is a signal here."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """A command whose stdin, stdout and stderr are one pseudo-terminal."""

    def __init__(self, folder: Path, *arguments: str, columns: int = 80) -> None:
        self.end, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        clean = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "CI")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "exactq", *arguments],
            cwd=folder,
            env=clean | {"TERM": "xterm-256color"},
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
            preexec_fn=_controlled,
        )
        os.close(inner)
        self.seen = ""

    def read(self, moment: float = 120) -> str:
        """What was printed so far, to the end or for as many seconds."""
        limit = time.monotonic() + moment
        while time.monotonic() < limit:
            if select.select([self.end], [], [], min(0.2, moment))[0]:
                try:
                    data = os.read(self.end, 65536)
                except OSError:  # the other end is closed
                    break
                if not data:
                    break
                self.seen += data.decode(errors="replace").replace("\r\n", "\n")
        return self.seen

    def type(self, text: str) -> None:
        os.write(self.end, text.encode())

    def code(self) -> int:
        self.read()
        code = self.process.wait(30)
        os.close(self.end)
        return code


def plain(text: str) -> list[str]:
    """The lines without colours, and without what a bar wiped out again."""
    return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).rpartition("\r")[2] for line in text.splitlines()]


STEPS = ("trace", "analyse", "optimise", "plan", "quantize", "fine-tune", "export")
PROMPT = re.compile(r"\[[^\]\n]*\]$")


def answered(terminal: Terminal, answers: dict[str, list[str]]) -> list[str]:
    """The steps that were asked about, each answered by the next of its answers, or by its default."""
    asked, place, limit = [], 0, time.monotonic() + 150
    while terminal.process.poll() is None and time.monotonic() < limit:
        terminal.read(moment=0.3)
        new = "\n".join(plain(terminal.seen[place:]))
        if not PROMPT.search(new):
            continue
        place = len(terminal.seen)
        labels = [line.split()[0] for line in new.splitlines() if line.split()[:1] and line[0] != " "]
        asked.append(next((label for label in reversed(labels) if label in (*STEPS, "model")), asked[-1] if asked else ""))
        waiting = answers.get(asked[-1], [])
        terminal.type((waiting.pop(0) if waiting else "") + "\n")
    return asked


@pytest.mark.parametrize("columns", [80, 40])
def test_a_terminal_is_asked_before_each_step_and_told_the_command(tmp_path: Path, columns: int) -> None:
    terminal = Terminal(tmp_path, "run", "simplecnn", columns=columns)
    answers = {"plan": ["w8a9", "w8a8", "w4a8"], "quantize": ["v", "n", "maybe", "v", "y"], "fine-tune": ["y", "none", "1"]}
    asked = answered(terminal, {"optimise": ["d"], **answers})
    assert terminal.code() in (0, 1)
    assert tuple(dict.fromkeys(asked)) == STEPS
    assert [asked.count(step) for step in ("plan", "quantize", "fine-tune")] == [3, 5, 3]  # what was refused is asked again
    lines = plain(terminal.seen)
    assert max(map(len, lines)) <= columns
    told = " ".join(" ".join(lines).split())
    assert "again exactq run simplecnn --recipe w4a8 --train always --epochs 1 --yes" in told
    for words in (
        "did you mean 'w8a8'?",
        "'maybe' is no answer: y, n, v, q",
        "'none' is no number of epochs",
        "bn1 folded into",
    ):
        assert words in told
    assert (tmp_path / "runs" / "simplecnn-onnxruntime" / "model.onnx").is_file()
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["simplecnn-onnxruntime"]


SLOWER = [(how, step) for how in ("q", "Ctrl-C") for step in ("analyse", "optimise", "plan", "fine-tune")]


@pytest.mark.parametrize(
    ("how", "step"),
    [
        *(("Ctrl-C", step) for step in ("model", "trace", "quantize", "export")),
        *(("q", step) for step in ("trace", "quantize", "export")),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOWER if case != ("q", "plan")),
    ],
)
def test_one_can_stop_at_every_question(tmp_path: Path, step: str, how: str) -> None:
    named = [] if step == "model" else ["simplecnn"]
    terminal = Terminal(tmp_path, "run", *named, "--out", "new/run")
    answered(terminal, {step: ["\x03" if how == "Ctrl-C" else "q"]})
    assert terminal.code() == (130 if how == "Ctrl-C" else 1), terminal.seen
    kept = step in ("fine-tune", "export")
    assert [p.name for p in tmp_path.rglob("*") if p.parent.name == "new"] == ([".run.unfinished"] if kept else [])
    assert ("the same command goes on from there" in " ".join(terminal.seen.split())) == kept


def test_yes_never_asks(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "run", "simplecnn", "--yes", "--recipe", "w8a8-linear-w4")
    assert terminal.code() == 0
    assert "[Y/n]" not in terminal.seen
    assert max(map(len, plain(terminal.seen))) <= 80


def _heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("stop", "code"), [(lambda p: p.send_signal(signal.SIGINT), 130), (lambda p: p.terminate(), 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, stop: Callable[[subprocess.Popen[str]], None], code: int) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    command = [sys.executable, "-m", "exactq", "run", "simplecnn", "--data", "slow.py:images", "--out", "new/run"]
    # Tests that a shell runs in the background inherit an ignored SIGINT, and so would the process.
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=_heed_ctrl_c)
    limit = time.monotonic() + 60
    while not (tmp_path / "begun").exists() and time.monotonic() < limit:
        time.sleep(0.02)
    stop(process)
    _, told = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in told
    assert sorted(p.name for p in tmp_path.iterdir()) == ["begun", "slow.py"]
