"""Float beside quantized: what a case says, which cases there are, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import exactq
from exactq import benchmark, flow, targets
from exactq.benchmark import Case, Cost, Settings, bench, fixed_batch, taken
from exactq.errors import DataError, UsageError
from exactq.memory import Memory
from exactq.quantized import Quantized
from exactq.timing import Spread

from .nets import net

COST = Cost(Spread(2.0, (1.0, 3.0), 0.5), 500.0, Memory(2, 1))


@pytest.fixture(scope="module")
def quantized() -> Quantized:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    return flow.quantize(model, (torch.randn(2, 1, 8, 8),), calibration=[torch.randn(8, 1, 8, 8)])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """(what, batch, threads) of all that was measured; nothing runs and nothing is started."""
    seen: list[tuple[str, int, int]] = []

    def timed(model: bytes, threads: int) -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]]:
        def run(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
            seen.append(("run", len(inputs[0]), threads))
            return ()

        return run

    def held(model: bytes, inputs: Sequence[Tensor], *, threads: int, **rest: object) -> Memory:
        seen.append(("memory", len(inputs[0]), threads))
        return Memory(len(model), 0)

    monkeypatch.setattr(benchmark, "memory", held)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    target = replace(targets.TARGETS["onnxruntime"], timed=timed)
    monkeypatch.setitem(targets.TARGETS, "onnxruntime", target)
    return seen


@pytest.mark.parametrize(
    ("quartiles", "finding"),
    [((1.01, 1.2), "faster"), ((0.5, 0.99), "slower"), ((0.99, 1.01), "about the same"), ((1.0, 1.1), "about the same")],
)
def test_a_ratio_whose_middle_half_holds_one_is_about_the_same(quartiles: tuple[float, float], finding: str) -> None:
    case = Case(1, 1, 5, COST, COST, Spread(sum(quartiles) / 2, quartiles, 0.1))
    assert case.finding == finding
    assert case.to_json()["ratio"] == {"median": case.ratio.median, "quartiles": list(quartiles), "finding": finding}


def test_each_number_of_threads_meets_each_batch_once(quantized: Quantized, asked: list[tuple[str, int, int]]) -> None:
    steps: list[int] = []
    settings = Settings((2, 1, 2), (1, 3), 1e-9)
    found = bench(quantized, settings, progress=steps.append)
    assert [(case.threads, case.batch) for case in found.cases] == [(1, 2), (1, 1), (3, 2), (3, 1)]
    assert [case.rounds for case in found.cases] == [5] * 4
    assert list(dict.fromkeys(asked)) == [(w, b, t) for t in (1, 3) for b in (2, 1) for w in ("run", "memory")]
    assert sum(steps) == len(steps) == 4 * benchmark.STEPS
    first = found.cases[0]
    assert (first.float.memory.peak_bytes, first.quantized.memory.peak_bytes) == (found.float_bytes, found.artifact_bytes)
    assert first.float.throughput == 2 * 1000 / first.float.ms.median


def test_the_findings_are_plain_data(quantized: Quantized, asked: list[tuple[str, int, int]]) -> None:
    facts = json.loads(json.dumps(bench(quantized, Settings(seconds=1e-9)).to_json(), allow_nan=False))
    assert set(facts) == {"target", "runtime", "version", "isa", "size", "cases"}
    assert facts["size"]["ratio"] == facts["size"]["float_bytes"] / facts["size"]["artifact_bytes"]
    (case,) = facts["cases"]
    assert set(case) == {"batch", "threads", "rounds", "float", "quantized", "ratio"}
    cost = {"median_ms", "quartiles_ms", "min_ms", "throughput", "peak_bytes", "resident_bytes"}
    assert set(case["float"]) == set(case["quantized"]) == cost


@pytest.mark.runtime
def test_the_door_measures_a_model_on_its_data(quantized: Quantized) -> None:
    found = exactq.bench(quantized, [torch.randn(3, 1, 8, 8)] * 2, batch=(1, 4), seconds=0.01)
    assert [case.batch for case in found.cases] == [1, 4]
    assert all(case.float.ms.least <= case.float.ms.quartiles[0] <= case.float.ms.median for case in found.cases)
    assert all(case.quantized.memory.peak_bytes > 0 for case in found.cases)


def test_the_first_samples_of_the_data_are_taken() -> None:
    batches = [(torch.arange(3.0),), (torch.arange(3.0, 6.0),), (torch.full((1,), torch.nan),)]
    found = taken(iter(batches), (1, 5))
    assert {size: inputs[0].tolist() for size, inputs in found.items()} == {1: [0.0], 5: [0.0, 1.0, 2.0, 3.0, 4.0]}
    with pytest.raises(DataError, match="a batch of 8 is asked for, and the data have 7 samples: name a smaller --batch"):
        taken(batches, (8,))


def test_data_that_the_model_does_not_take_are_named(quantized: Quantized) -> None:
    with pytest.raises(DataError, match=r"input `\w+` has the shape \(1, 7\)"):
        exactq.bench(quantized, [torch.zeros(2, 7)])


def test_a_model_of_fixed_shapes_has_one_batch() -> None:
    graph = flow.prepare(net(lambda s, x: x + torch.ones(3, 4)), (torch.zeros(3, 4),))
    assert fixed_batch(graph) == 3
    assert Settings().sizes(graph) == Settings((3,)).sizes(graph) == (3,)
    with pytest.raises(UsageError, match=r"--batch is 1; the model has fixed shapes and only takes batches of 3"):
        Settings((3, 1)).sizes(graph)


def test_numbers_that_no_machine_can_do_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    for wrong in (0, 5):
        with pytest.raises(UsageError, match=rf"--threads is {wrong}; this machine can run 1 to 4"):
            Settings(threads=(1, wrong))
    with pytest.raises(UsageError, match="--batch is 0; a batch has 1 sample or more"):
        Settings((0,))
    for seconds in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match=r"--seconds is .*a number of seconds above 0, like 2.0"):
            Settings(seconds=seconds)
