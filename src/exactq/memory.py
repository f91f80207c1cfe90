"""How much memory a model file takes, found in a process of its own, which loads the runtime and nothing else of weight.

The process imports the runtime, makes it ready, reads the inputs, and notes its resident memory. Then it loads the file and
runs it: what its resident memory grew by at most is `peak_bytes`, what is left of that at the end `resident_bytes`. Both hold
the weights in whatever form the runtime keeps them, activations, outputs, the runtime's threads, and pages of its code that
this model is the first to use.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exactq.errors import TargetError

RUNS = 3
"""How often the file is run: buffers that a runtime sets up in its first run are filled in its second."""

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Memory:
    """Bytes of resident memory that loading and running a file adds at most, and those it holds afterwards."""

    peak_bytes: int
    resident_bytes: int


def memory(model: bytes, inputs: Sequence[Any], *, alone: Path, suffix: str, threads: int) -> Memory:
    """What loading and running a model file adds to a process, on `inputs` (arrays, by position) and that many threads.

    `alone` is the target's own Python file (see `Target`). Raises `TargetError` with the last words of a process that fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, arrays = Path(folder, f"model{suffix}"), Path(folder, "inputs.npz")
        path.write_bytes(model)
        np.savez(arrays, *inputs)
        package = Path(__file__).parents[1]
        paths = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-m", "exactq.memory", str(alone), str(path), str(arrays), str(threads)]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise TargetError(f"a process of its own could not run the model to measure its memory: {words}")
    return Memory(**json.loads(done.stdout))


def _measure(alone: str, model: str, arrays: str, threads: str) -> Memory:
    """What the process of its own finds."""
    import runpy

    runtime = runpy.run_path(alone)
    runtime["start"]()
    with np.load(arrays) as held:
        inputs = [held[name] for name in held.files]
    forget_peak()
    before = resident()
    run = runtime["load"](model, int(threads))
    for _ in range(RUNS):
        run(inputs)
    after = resident()  # before the peak, which reading may raise
    return Memory(max(peak() - before, 0), max(after - before, 0))


def forget_peak() -> None:
    """Let the peak begin anew where the system can: what imports needed for a moment would hide a small model."""
    try:
        CLEAR.write_text("5")  # Linux: resets VmHWM, proc_pid_clear_refs(5)
    except OSError:
        return


def resident() -> int:
    """Bytes of resident memory now; where the system does not say, the largest so far, so that nothing is counted twice."""
    return _status("VmRSS") if STATUS.exists() else peak()


def peak() -> int:
    """The largest resident memory so far, in bytes.

    Linux: not `ru_maxrss`, which a process inherits from the one that started it, through exec too (getrusage(2), exec_mmap).
    """
    if STATUS.exists():
        return _status("VmHWM")
    import resource

    kept = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kept if sys.platform == "darwin" else kept * 1024  # bytes on macOS, KiB elsewhere


def _status(field: str) -> int:
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


if __name__ == "__main__":
    found = _measure(*sys.argv[1:])
    sys.stdout.write(json.dumps({"peak_bytes": found.peak_bytes, "resident_bytes": found.resident_bytes}))
