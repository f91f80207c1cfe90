"""How long two models take, side by side: interleaved runs in one process, so that a noisy machine slows both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter
from typing import Any

from torch import Tensor

Run = Callable[[Sequence[Tensor]], object]

_RESOLUTION = 1e-6
"""A nanosecond, in milliseconds: no clock tells shorter times apart."""


@dataclass(frozen=True)
class Latency:
    """Median milliseconds of both models on one batch, and how many times faster the artifact is."""

    float_ms: float
    artifact_ms: float
    ratio: float
    rounds: int
    batch: int
    threads: int

    def to_json(self) -> dict[str, Any]:
        """The figures as plain data."""
        return asdict(self)


def latency(
    float_run: Run, artifact_run: Run, inputs: Sequence[Tensor], *, threads: int, seconds: float = 2.0, most: int = 200
) -> Latency:
    """The latencies of two models on `inputs`, run in turns for about `seconds` (at least 5 rounds, `most` at most)."""
    for run in (float_run, artifact_run):
        run(inputs)
    times: tuple[list[float], list[float]] = ([], [])
    start = perf_counter()
    while len(times[0]) < 5 or (len(times[0]) < most and perf_counter() - start < seconds):
        for run, kept in zip((float_run, artifact_run), times, strict=True):
            before = perf_counter()
            run(inputs)
            kept.append((perf_counter() - before) * 1000)
    first, second = median(times[0]), median(times[1])
    ratio = max(first, _RESOLUTION) / max(second, _RESOLUTION)
    return Latency(first, second, ratio, len(times[0]), len(inputs[0]), threads)
