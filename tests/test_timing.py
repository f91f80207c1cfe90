"""Two models in turns on one clock: medians, and their ratio."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from exactq import timing
from exactq.timing import latency

BATCH = (torch.zeros(3, 2),)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Callable[[Sequence[Tensor]], None]]:
    """A clock that stands still, and models that move it by a number of seconds."""
    now = [0.0]
    monkeypatch.setattr(timing, "perf_counter", lambda: now[0])

    def model(seconds: float) -> Callable[[Sequence[Tensor]], None]:
        def run(inputs: Sequence[Tensor]) -> None:
            assert inputs is BATCH
            now[0] += seconds

        return run

    return model


def test_the_ratio_is_that_of_the_medians(clock: Callable[[float], Callable[[Sequence[Tensor]], None]]) -> None:
    found = latency(clock(0.008), clock(0.002), BATCH, threads=1, seconds=1.0)
    assert (found.float_ms, found.artifact_ms, found.ratio) == pytest.approx((8.0, 2.0, 4.0))
    assert (found.rounds, found.batch, found.threads) == (100, 3, 1)
    assert found.to_json()["ratio"] == pytest.approx(4.0)


def test_a_slow_model_is_run_five_times_and_a_fast_one_not_for_ever(
    clock: Callable[[float], Callable[[Sequence[Tensor]], None]],
) -> None:
    assert latency(clock(60.0), clock(60.0), BATCH, threads=1).rounds == 5
    assert latency(clock(1e-9), clock(1e-9), BATCH, threads=1, most=17).rounds == 17


def test_models_run_in_turns_and_each_once_before_the_clock_starts() -> None:
    runs: list[str] = []
    found = latency(lambda _: runs.append("float"), lambda _: runs.append("int"), BATCH, threads=1, seconds=0.0)
    assert runs == ["float", "int"] * (found.rounds + 1)
    assert found.rounds == 5


def test_a_clock_too_coarse_for_a_model_gives_no_nonsense(
    clock: Callable[[float], Callable[[Sequence[Tensor]], None]],
) -> None:
    found = latency(clock(0.0), clock(0.0), BATCH, threads=1, most=9)
    assert found.ratio == 1.0
