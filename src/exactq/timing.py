"""How long two models take, side by side: interleaved runs in one process, so that a noisy machine slows both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from time import perf_counter
from typing import Any

from torch import Tensor

Run = Callable[[Sequence[Tensor]], object]

LEAST = 5
"""Rounds that are timed whatever they take: quartiles need some."""

_WARM = 2
"""Rounds before the clock starts, one in either order: buffers are there then, and the weights in the cache."""

_RESOLUTION = 1e-6
"""A nanosecond, in milliseconds: no clock tells shorter times apart, and no time is zero."""


@dataclass(frozen=True)
class Spread:
    """Some numbers in four: their median, the quartiles around it, and the smallest."""

    median: float
    quartiles: tuple[float, float]
    least: float


@dataclass(frozen=True)
class Rounds:
    """The milliseconds of both models in each round, in the order of rounds."""

    float_ms: tuple[float, ...]
    artifact_ms: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.float_ms)

    @property
    def ratio(self) -> Spread:
        """How many times faster the artifact is, round by round: what slows a round slows both of its halves."""
        return spread([a / b for a, b in zip(self.float_ms, self.artifact_ms, strict=True)])


@dataclass(frozen=True)
class Latency:
    """Median milliseconds of both models on one batch, and how many times faster the artifact is (see `Rounds.ratio`)."""

    float_ms: float
    artifact_ms: float
    ratio: float
    rounds: int
    batch: int
    threads: int

    def to_json(self) -> dict[str, Any]:
        """The figures as plain data."""
        return asdict(self)


def spread(values: Sequence[float]) -> Spread:
    """The spread of at least two numbers; quartiles interpolate between neighbours.

    >>> spread([4.0, 1.0, 2.0, 3.0])
    Spread(median=2.5, quartiles=(1.75, 3.25), least=1.0)
    """
    lower, _, upper = quantiles(values, n=4, method="inclusive")
    return Spread(median(values), (lower, upper), min(values))


def in_turns(float_run: Run, artifact_run: Run, inputs: Sequence[Tensor], *, seconds: float, most: int) -> Rounds:
    """The times of two models on `inputs` for about `seconds`, in at least `LEAST` rounds and at most `most`.

    Each round runs both; the one that goes first in one round goes second in the next, so neither always finds the caches as
    the other left them.
    """
    runs = (float_run, artifact_run)
    times: tuple[list[float], list[float]] = ([], [])

    def round_of(number: int) -> None:
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            before = perf_counter()
            runs[which](inputs)
            times[which].append(max((perf_counter() - before) * 1000, _RESOLUTION))

    for number in range(_WARM):
        round_of(number)
    for kept in times:
        kept.clear()
    start = perf_counter()
    while (done := len(times[0])) < LEAST or (done < most and perf_counter() - start < seconds):
        round_of(done)
    return Rounds(*map(tuple, times))


def latency(
    float_run: Run, artifact_run: Run, inputs: Sequence[Tensor], *, threads: int, seconds: float = 2.0, most: int = 200
) -> Latency:
    """The latencies of two models on `inputs`, run in turns (see `in_turns`)."""
    found = in_turns(float_run, artifact_run, inputs, seconds=seconds, most=most)
    medians = median(found.float_ms), median(found.artifact_ms)
    return Latency(*medians, found.ratio.median, len(found), len(inputs[0]), threads)
