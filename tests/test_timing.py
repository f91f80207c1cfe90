"""Two models in turns on one clock: spreads, and the ratio round by round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat

import pytest
import torch
from torch import Tensor

from exactq import timing
from exactq.timing import Rounds, in_turns, latency, spread

BATCH = (torch.zeros(3, 2),)

Model = Callable[[Sequence[Tensor]], None]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Model]:
    """A clock that stands still, and models that move it by seconds: the given ones in order, then the last for ever."""
    now = [0.0]
    monkeypatch.setattr(timing, "perf_counter", lambda: now[0])

    def model(*seconds: float) -> Model:
        steps: Iterator[float] = chain(seconds, repeat(seconds[-1]))

        def run(inputs: Sequence[Tensor]) -> None:
            assert inputs is BATCH
            now[0] += next(steps)

        return run

    return model


def test_medians_and_their_ratio(clock: Callable[..., Model]) -> None:
    found = latency(clock(0.008), clock(0.002), BATCH, threads=1, seconds=1.0)
    assert (found.float_ms, found.artifact_ms, found.ratio) == pytest.approx((8.0, 2.0, 4.0))
    assert (found.rounds, found.batch, found.threads) == (100, 3, 1)
    assert found.to_json()["ratio"] == pytest.approx(4.0)


def test_what_slows_a_whole_round_does_not_move_the_ratio(clock: Callable[..., Model]) -> None:
    load = (9.0, 9.0, 1.0, 7.0, 3.0, 2.0, 5.0)  # two rounds to warm up
    found = in_turns(clock(*(4 * x for x in load)), clock(*load), BATCH, seconds=0.0, most=9)
    assert found.artifact_ms == pytest.approx([1000.0, 7000.0, 3000.0, 2000.0, 5000.0])
    ratio = found.ratio
    assert (ratio.median, *ratio.quartiles, ratio.least) == pytest.approx((4.0, 4.0, 4.0, 4.0))


def test_the_ratio_is_the_median_of_the_rounds_and_not_that_of_the_medians() -> None:
    found = Rounds((1.0, 2.0, 9.0), (2.0, 1.0, 3.0)).ratio
    assert (found.median, found.quartiles, found.least) == (2.0, (1.25, 2.5), 0.5)


def test_quartiles_are_those_of_numpy() -> None:
    values = torch.randn(101, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = spread(values.tolist())
    expected = torch.quantile(values, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    assert [found.quartiles[0], found.median, found.quartiles[1]] == pytest.approx(expected)
    assert found.least == float(values.min())


def test_a_slow_model_is_run_five_times_and_a_fast_one_not_for_ever(clock: Callable[..., Model]) -> None:
    assert latency(clock(60.0), clock(60.0), BATCH, threads=1).rounds == 5
    assert latency(clock(1e-9), clock(1e-9), BATCH, threads=1, most=17).rounds == 17


def test_models_run_in_turns_and_take_turns_in_going_first() -> None:
    runs: list[str] = []
    found = in_turns(lambda _: runs.append("float"), lambda _: runs.append("int"), BATCH, seconds=0.0, most=9)
    assert len(found) == 5
    assert runs == (["float", "int", "int", "float"] * 4)[: 2 * (len(found) + 2)]


def test_warming_up_is_not_counted(clock: Callable[..., Model]) -> None:
    found = in_turns(clock(50.0, 50.0, 0.002), clock(70.0, 70.0, 0.001), BATCH, seconds=0.0, most=9)
    assert found.float_ms == pytest.approx([2.0] * 5)
    assert found.artifact_ms == pytest.approx([1.0] * 5)


def test_a_clock_too_coarse_for_a_model_gives_no_nonsense(clock: Callable[..., Model]) -> None:
    found = latency(clock(0.0), clock(0.0), BATCH, threads=1, most=9)
    assert found.ratio == 1.0
    assert found.float_ms > 0
