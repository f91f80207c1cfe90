"""The benchmark of a run folder: its own files on this machine, on noise or on data that are named."""

from __future__ import annotations

from pathlib import Path

from exactq.benchmark import ONE, STEPS, Benchmark, Settings, bench
from exactq.runs.folder import open_run
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
    saved = open_run(Path(folder), data=_NONE if data is None else data, talk=talk)
    graph = saved.quantized.float_graph
    sizes = settings.sizes(graph)
    inputs = None if data is None else (b.inputs for b in saved.dataset(seed=seed, batch_size=max(sizes)).evaluation)
    with talk.track("bench", STEPS * len(sizes) * len(settings.threads)) as advance:
        return bench(saved.quantized, settings, data=inputs, artifact=saved.artifact, seed=seed, progress=advance)
