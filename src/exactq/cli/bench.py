"""exactq bench: what a run's artifact gains on this machine, float beside quantized."""

from __future__ import annotations

import math
import sys
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exactq.cli.options import Data, Json, Seed, number, wholes

if TYPE_CHECKING:
    from exactq.benchmark import Benchmark, Case


WIDTH = 80
"""What the table needs; a narrower terminal gets a sentence a row."""

SENTENCE = "{3} ms ({4}), at least {5}, {6:,} samples/s, {7} MiB at batch {0}, threads {1}"


def bench(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")],
    *,
    data: Data = None,
    batch: Annotated[
        str | None,
        typer.Option(metavar="N[,N…]", help="Batch sizes; one sample, or the batch that a model of fixed shapes takes."),
    ] = None,
    threads: Annotated[str, typer.Option(metavar="N[,N…]", help="Threads that the runtime may use.")] = "1",
    seconds: Annotated[
        float, typer.Option(metavar="S", parser=number("--seconds"), help="How long each case is timed, about.")
    ] = 2.0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure what RUN's artifact gains on this machine.

    Latency, throughput, size and memory of the float file and the quantized one. Both run in turns, so that other work on the
    machine slows both; memory is measured in a process of its own for each. Inputs are noise unless --data names others.
    """
    from exactq.benchmark import Settings
    from exactq.cli.talking import job, print_json, print_lines, print_table, talk
    from exactq.runs.speed import bench_run

    settings = Settings(wholes("--batch", batch) if batch is not None else (), wholes("--threads", threads), seconds)
    with job():
        found = bench_run(run, settings, data=data, seed=seed, talk=talk())
    if as_json:
        print_json({"run": run, **found.to_json()})
        return
    rows = [row for case in found.cases for row in _rows(case)]
    if not sys.stdout.isatty() or get_terminal_size().columns >= WIDTH:
        print_table("speed and memory", ("batch", "threads", "file", "ms", "quartiles", "least", "samples/s", "MiB"), rows)
    else:
        print_lines([(row[2], SENTENCE.format(*row)) for row in rows])
    print_lines(_told(found))


def _rows(case: Case) -> list[tuple[Any, ...]]:
    """A row for each file: median, quartiles and minimum in milliseconds, samples a second, peak memory added."""
    rows: list[tuple[Any, ...]] = []
    for name, cost in (("float", case.float), ("quantized", case.quantized)):
        middle, lower, upper, least = map(_shown, (cost.ms.median, *cost.ms.quartiles, cost.ms.least))
        memory = _shown(cost.memory.peak_bytes / 2**20)
        rows.append((case.batch, case.threads, name, middle, f"{lower}–{upper}", least, round(cost.throughput), memory))
    return rows


def _shown(value: float) -> str:
    """A number in three digits or more, never in powers of ten."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def _told(found: Benchmark) -> list[tuple[str, str]]:
    """What the table means, in sentences."""
    before, after = found.float_bytes, found.artifact_bytes
    speeds = []
    for case in found.cases:
        lower, upper = case.ratio.quartiles
        where = f"batch {case.batch}, {case.threads} thread{'s' if case.threads > 1 else ''}, {case.rounds:,} rounds"
        speeds.append(("speed", f"{case.finding}: {case.ratio.median:.2f}× ({lower:.2f}–{upper:.2f}) at {where}"))
    size = f"{before / 1024:,.0f} KiB float, {after / 1024:,.0f} KiB quantized: {before / after:.2f}× smaller"
    return [*speeds, ("size", size), ("runtime", f"{found.runtime} {found.version}, {found.isa or 'not measured here'}")]
