"""What quantization gains on this machine: the float file beside the quantized one, in time, size and memory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from exactq.calibration.collect import check_inputs
from exactq.errors import DataError, TargetError, UsageError
from exactq.graphs.graph import Graph
from exactq.graphs.programs import example_inputs
from exactq.memory import Memory, memory
from exactq.quantized import Quantized
from exactq.targets.target import Target
from exactq.timing import Spread, in_turns, spread

SECONDS = 2.0
MOST = 10_000
"""Rounds of a case at most: beyond them a spread says nothing new."""

STEPS = 3
"""What `bench` counts for each case: the timing, and the memory of either file."""


@dataclass(frozen=True)
class Cost:
    """What one file costs: milliseconds a batch, samples a second (the batch over the median), bytes (see `memory`)."""

    ms: Spread
    throughput: float
    memory: Memory

    def to_json(self) -> dict[str, Any]:
        """The figures as plain data."""
        times = {"median_ms": self.ms.median, "quartiles_ms": list(self.ms.quartiles), "min_ms": self.ms.least}
        return times | {"throughput": self.throughput} | asdict(self.memory)


@dataclass(frozen=True)
class Case:
    """Both files on one batch size and number of threads; `ratio` is how many times faster the quantized one is."""

    batch: int
    threads: int
    rounds: int
    float: Cost
    quantized: Cost
    ratio: Spread

    @property
    def finding(self) -> str:
        """`faster` or `slower`, or `about the same` where the middle half of the rounds does not agree on either."""
        lower, upper = self.ratio.quartiles
        return "faster" if lower > 1 else "slower" if upper < 1 else "about the same"

    def to_json(self) -> dict[str, Any]:
        """The case as plain data."""
        ratio = {"median": self.ratio.median, "quartiles": list(self.ratio.quartiles), "finding": self.finding}
        files = {"float": self.float.to_json(), "quantized": self.quantized.to_json()}
        return {"batch": self.batch, "threads": self.threads, "rounds": self.rounds, **files, "ratio": ratio}


@dataclass(frozen=True)
class Benchmark:
    """What `bench` found: the sizes of both files in bytes, and each case; `isa` None where this machine's was not measured."""

    target: str
    runtime: str
    version: str
    isa: str | None
    float_bytes: int
    artifact_bytes: int
    cases: tuple[Case, ...]

    def to_json(self) -> dict[str, Any]:
        """The findings as plain data."""
        ratio = self.float_bytes / self.artifact_bytes
        return {
            "target": self.target,
            "runtime": self.runtime,
            "version": self.version,
            "isa": self.isa,
            "size": {"float_bytes": self.float_bytes, "artifact_bytes": self.artifact_bytes, "ratio": ratio},
            "cases": [case.to_json() for case in self.cases],
        }


@dataclass(frozen=True)
class Settings:
    """What is measured: each number of `threads` with each batch size, for about `seconds` a case.

    Without `batches` it is one sample, or the batch that a model of fixed shapes takes. Raises `UsageError` for numbers that
    no machine, or not this one, can do.
    """

    batches: tuple[int, ...] = ()
    threads: tuple[int, ...] = (1,)
    seconds: float = SECONDS

    def __post_init__(self) -> None:
        for size in self.batches:
            if size < 1:
                raise UsageError(f"--batch is {size}; a batch has 1 sample or more")
        cores = os.cpu_count() or 1
        for count in self.threads:
            if not 1 <= count <= cores:
                raise UsageError(f"--threads is {count}; this machine can run 1 to {cores}")
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise UsageError(f"--seconds is {self.seconds}; it needs a number of seconds above 0, like {SECONDS}")

    def sizes(self, graph: Graph) -> tuple[int, ...]:
        """The batch sizes for one model, each once. Raises `UsageError` for one that a model of fixed shapes does not take."""
        if (only := fixed_batch(graph)) is None:
            return tuple(dict.fromkeys(self.batches)) or (1,)
        for size in self.batches:
            if size != only:
                raise UsageError(f"--batch is {size}; the model has fixed shapes and only takes batches of {only}")
        return (only,)


ONE = Settings()
"""One sample on one thread."""


def fixed_batch(graph: Graph) -> int | None:
    """The only batch size of a graph of fixed shapes; None where any size goes."""
    if any(place.batch for place in graph.inputs):
        return None
    return next((place.shape[0] for place in graph.inputs if place.shape), 1)


def bench(
    quantized: Quantized,
    settings: Settings = ONE,
    *,
    data: Iterable[Sequence[Tensor]] | None = None,
    artifact: bytes | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Benchmark:
    """The float file and the quantized one, in turns in this process and each in one of its own, case by case.

    `artifact` is the file to measure, if not what the model exports; `data` gives batches of inputs whose first samples are
    used, without it inputs are standard normal noise (zeros for integers). `progress` is told of each of a case's `STEPS`.
    """
    graph, target = quantized.float_graph, quantized.target
    sizes = settings.sizes(graph)
    inputs = {size: example_inputs(graph, size, seed) for size in sizes} if data is None else taken(data, sizes)
    for batch in inputs.values():
        check_inputs(graph, batch)
    files = (target.emit(graph), quantized.artifact() if artifact is None else artifact)
    step = progress if progress is not None else lambda size: None

    def cost(file: bytes, times: Sequence[float], size: int, threads: int) -> Cost:
        arrays = [x.numpy() for x in inputs[size]]
        held = memory(file, arrays, alone=target.alone, suffix=target.suffix, threads=threads)
        step(1)
        return Cost(spread(times), size * 1000 / median(times), held)

    cases = []
    for threads in dict.fromkeys(settings.threads):
        plain, integer = (target.timed(file, threads) for file in files)
        for size in sizes:
            found = in_turns(plain, integer, inputs[size], seconds=settings.seconds, most=MOST)
            step(1)
            before = cost(files[0], found.float_ms, size, threads)
            after = cost(files[1], found.artifact_ms, size, threads)
            cases.append(Case(size, threads, len(found), before, after, found.ratio))
    named = f"{quantized.plan.target}@{quantized.plan.isa}"
    return Benchmark(named, target.name, target.version, _isa(target), len(files[0]), len(files[1]), tuple(cases))


def _isa(target: Target) -> str | None:
    try:
        return target.detect_isa()
    except TargetError:  # times, other than integers, can be measured anywhere
        return None


def taken(data: Iterable[Sequence[Tensor]], sizes: Sequence[int]) -> dict[int, tuple[Tensor, ...]]:
    """Batch size -> the first samples of `data`. Raises `DataError` where there are fewer."""
    parts: list[Sequence[Tensor]] = []
    seen, wanted = 0, max(sizes)
    for batch in data:
        parts.append(batch)
        seen += len(batch[0])
        if seen >= wanted:
            break
    if seen < wanted:
        raise DataError(
            f"a batch of {wanted} is asked for, and the data have {seen} samples: name a smaller --batch, or more data"
        )
    whole = [torch.cat(column) for column in zip(*parts, strict=True)]
    return {size: tuple(x[:size].contiguous() for x in whole) for size in sizes}
