"""What the benchmarks share: a table on stdout with the machine it was made on, interleaved timing, peak memory."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

import onnxruntime
import torch

from exactq.targets.onnxruntime.runtime import detect_isa

ROOT = Path(__file__).parents[1]


def data_folder() -> Path:
    """The folder of local data: `EXACTQ_DATA`, or `../shared/data` beside the checkout; where missing, the benchmark ends."""
    folder = Path(os.environ.get("EXACTQ_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        raise SystemExit(f"skipped: there is no {folder}; set EXACTQ_DATA")
    os.environ["EXACTQ_DATA"] = str(folder)
    return folder


def machine() -> str:
    """Instruction set, versions and threads, on one line."""
    return (
        f"ISA {detect_isa()}, onnxruntime {onnxruntime.__version__}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} torch threads, {platform.machine()}"
    )


def interleaved(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Name -> median milliseconds of each, one round of all after another, so that noise hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for name in runs:
        runs[name]()
    for _ in range(rounds):
        for name, run in runs.items():
            start = perf_counter()
            run()
            times[name].append((perf_counter() - start) * 1000)
    return {name: median(values) for name, values in times.items()}


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """The rows as a Markdown table."""
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")


def peak_memory() -> str:
    """The largest resident size of this process so far."""
    return f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
