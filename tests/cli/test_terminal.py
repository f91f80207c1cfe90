"""exactq on a terminal of 80 columns, and interrupted: in a process of its own, through a pseudo-terminal."""

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


class Terminal:
    """A command whose stdin, stdout and stderr are one pseudo-terminal."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.end, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
        clean = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "CI")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "exactq", *arguments],
            cwd=folder,
            env=clean | {"TERM": "xterm-256color"},
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
        )
        os.close(inner)
        self.seen = ""

    def read(self, until: str | None = None) -> str:
        """What was printed so far, up to `until` or to the end."""
        limit = time.monotonic() + 90
        while (until is None or until not in self.seen) and time.monotonic() < limit:
            if select.select([self.end], [], [], 0.2)[0]:
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


def test_a_terminal_is_shown_the_plan_asked_and_told_the_command(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "run", "simplecnn")
    before = plain(terminal.read("Quantize with this plan? [Y/n]:"))
    assert any(re.match(r"conv1 +conv2d +int8 per channel, (minmax|pairsafe)", line) for line in before)
    assert max(map(len, before)) <= 80
    assert not (tmp_path / "runs" / "simplecnn-onnxruntime").exists()
    terminal.type("\n")
    assert terminal.code() == 0
    lines = plain(terminal.seen)
    assert "again      exactq run simplecnn --yes" in [line.rstrip() for line in lines]
    assert any(line.startswith("verdict    ok") for line in lines)
    assert "\x1b[" in terminal.seen
    assert max(map(len, lines)) <= 80
    assert (tmp_path / "runs" / "simplecnn-onnxruntime" / "model.onnx").is_file()


def test_no_is_an_answer(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "run", "simplecnn", "--out", "new/run")
    terminal.read("[Y/n]:")
    terminal.type("n\n")
    assert terminal.code() == 1
    assert "exactq plan" in terminal.seen
    assert list(tmp_path.iterdir()) == []


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
