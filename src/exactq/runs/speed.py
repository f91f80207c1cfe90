"""The benchmark of a run folder: its own files on this machine, on noise or on data that are named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from exactq.benchmark import ONE, STEPS, Benchmark, Settings, bench
from exactq.datasets.catalog import load
from exactq.runs.folder import Saved, open_run
from exactq.runs.wishes import check_seed
from exactq.talk import SILENT, Talk

_NONE = "none"
"""What stands for the run's data, which are not opened."""


def bench_run(
    folder: str | Path, settings: Settings = ONE, *, data: str | None = None, seed: int = 0, talk: Talk = SILENT
) -> Benchmark:
    """The artifact of a run folder beside the float file of the same graph; nothing is written into the folder.

    Without `data` the inputs are noise of `seed`, whatever the run was made with: times do not depend on their values.
    """
    check_seed(seed)
    saved = open_run(Path(folder), data=_NONE if data is None else data)
    for name in saved.changed:
        talk.say(f"note       {name} is not the file that the run wrote")
    graph = saved.quantized.float_graph
    sizes = settings.sizes(graph)
    inputs = None if data is None else _inputs(saved, sizes, seed)
    with talk.track("bench", STEPS * len(sizes) * len(settings.threads)) as advance:
        return bench(saved.quantized, settings, data=inputs, artifact=saved.artifact, seed=seed, progress=advance)


def _inputs(saved: Saved, sizes: tuple[int, ...], seed: int) -> Iterator[tuple[Tensor, ...]]:
    places = saved.quantized.float_graph.inputs
    names, shapes = tuple(place.name for place in places), tuple(place.shape[1:] for place in places)
    dataset = load(saved.data, calibration=1, batch_size=max(sizes), seed=seed, inputs=names, shapes=shapes)
    return (batch.inputs for batch in dataset.evaluation)
