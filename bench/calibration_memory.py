"""Does calibration's memory grow with the number of images? 10,000 beside 100, each in a process of its own.

resnet18 at full width in its form for small images, 3×32×32, random weights, batches of 50 that are made as they are asked
for. `held` is what the process has before it calibrates: torch, the model and its graph. `peak` is the most that calibrating
and quantizing add to that; its ratio is to the row above.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from statistics import median
from time import perf_counter

import torch
from common import machine, table
from torch import Tensor

from exactq import flow
from exactq.memory import forget_peak, peak, resident
from exactq.models.resnet18 import ResNet18
from exactq.plans.recipes import Recipe

BATCH = 50
FEW, MANY = 100, 10_000
MOST = 1.05
"""The peak that the many may have, in times of that of the few."""
FIXED = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}


def images(count: int) -> Iterator[tuple[Tensor, ...]]:
    """`count` images of standard normal noise, a batch at a time."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count // BATCH):
        yield (torch.randn(BATCH, 3, 32, 32, generator=generator),)


def measure(observer: str, count: int) -> None:
    """Print MiB held before, MiB that quantizing with `count` images adds at most, and its seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    graph = flow.prepare(ResNet18((3, 32, 32), 10, small=True).eval(), (torch.zeros(2, 3, 32, 32),))
    forget_peak()
    held, start = resident(), perf_counter()
    flow.quantize_graph(graph, calibration=images(count), recipe=Recipe("w8a8", activation_observer=observer))
    print(held / 2**20, (peak() - held) / 2**20, perf_counter() - start)


def main() -> None:
    """Print held, added and peak of few and many images for each observer named (minmax and mse without any)."""
    env = os.environ | ({} if "--allocator-as-it-is" in sys.argv else FIXED)
    rows = []
    for observer in [name for name in sys.argv[1:] if not name.startswith("--")] or ["minmax", "mse"]:
        first = (0.0, 0.0)
        for count in (FEW, MANY):
            found = [child(observer, count, env) for _ in range(3 if count == FEW else 1)]
            held, added, seconds = (median(column) for column in zip(*found, strict=True))
            first = (held + added, added) if count == FEW else first
            times, fits = (held + added) / first[0], ""
            if count == MANY:
                fits = f"{'within' if times <= MOST else 'beyond'} {MOST}"
            figures = (f"{held:.0f}", f"{added:.0f}", f"{added / first[1]:.3f}", f"{held + added:.0f}", f"{times:.3f}", fits)
            rows.append((observer, count, *figures, f"{seconds:.0f}"))
    print(f"resnet18, 3×32×32, batches of {BATCH}, one thread; {machine()}\n")
    table(("observer", "images", "held MiB", "added MiB", "times few", "peak MiB", "times few", "", "s"), rows)


def child(observer: str, count: int, env: dict[str, str]) -> tuple[float, ...]:
    """What `measure` prints in a process of its own."""
    command = [sys.executable, __file__, "--measure", observer, str(count)]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    return tuple(map(float, done.stdout.split()))


if __name__ == "__main__":
    if "--measure" in sys.argv:
        measure(sys.argv[2], int(sys.argv[3]))
    else:
        main()
