"""Fine-tuning: it gets better, it is the same again, it survives a kill, and what it makes runs as predicted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training import models
from torch import Tensor, nn

from exactq import flow
from exactq.datasets.splits import Batch, Indexed, Streamed
from exactq.errors import DataError, ModelError, UsageError
from exactq.metrics import ACCURACY, Run, measure
from exactq.numerics.formats import INT3, INT4, INT8
from exactq.quantized import Quantized
from exactq.traces import walk
from exactq.training.courses import OPTIMIZERS, Course
from exactq.training.exact import exact
from exactq.training.lsq import lsq
from exactq.training.methods import METHODS, method_named
from exactq.training.objectives import DISTILLATION, LABELS, MATCHING, Objective, distillation
from exactq.training.simulation import Simulation, Start, State
from exactq.training.straight_through import Moving, straight_through
from exactq.training.tuning import Moment, Tuned, tune
from exactq.verification import verify

SHORT = Course(epochs=2, batch=32, rate=1e-2)  # 96 samples, 10 of them held out: 3 steps an epoch


def weights(made: Quantized) -> dict[str, Tensor]:
    return made.float_graph.constants


def same(a: Quantized, b: Quantized) -> bool:
    return all(torch.equal(x, weights(b)[name]) for name, x in weights(a).items()) and a.artifact() == b.artifact()


@pytest.fixture(scope="module")
def start() -> Quantized:
    return models.quantized(INT3.narrow)


@pytest.fixture(scope="module")
def tuned(start: Quantized) -> Tuned[Quantized]:
    return tune(start, models.images(256), course=Course(epochs=6, batch=32, rate=1e-2))


# What comes out


def test_the_float_models_outputs_are_nearer_afterwards(start: Quantized, tuned: Tuned[Quantized]) -> None:
    scores = [line.score for line in tuned.history]
    assert [line.epoch for line in tuned.history] == list(range(7))
    assert tuned.history[0].loss is None
    assert tuned.best == max(range(7), key=scores.__getitem__) > 0
    assert -scores[tuned.best] < -scores[0] / 2


def test_names_plan_and_calibrated_grids_stay_and_the_weights_do_not(start: Quantized, tuned: Tuned[Quantized]) -> None:
    made = tuned.quantized
    assert made.plan == start.plan
    assert made.notes[-1] == f"weights and biases were fine-tuned on the plan's grids by distillation: epoch {tuned.best} of 6"
    assert list(weights(made)) == list(weights(start))
    assert all(not torch.equal(tensor, weights(start)[name]) for name, tensor in weights(made).items())
    constants = weights(start)
    assert all(made.grids[name].same_as(at) for name, at in start.grids.items() if name not in constants)


@pytest.mark.runtime
@pytest.mark.parametrize(("fmt", "observer"), [(INT4.narrow, "minmax"), (INT8.narrow, "pairsafe")])
def test_the_runtime_gives_the_integers_that_are_predicted(fmt: Any, observer: str, tmp_path: Path) -> None:
    made = tune(models.quantized(fmt, observer), models.images(), course=SHORT).quantized
    verdict = verify(made, [b.inputs for b in models.images(32, seed=6)])
    assert verdict.equal
    assert verdict.elements > 5000
    flow.load(made.save(tmp_path / "folder"))
    assert made.export(tmp_path / "model.onnx").stat().st_size > 1000


def test_samples_that_cannot_be_read_are_trained_without(start: Quantized) -> None:
    whole = models.images()
    assert isinstance(whole, Indexed)

    def take(indices: Tensor) -> Batch | None:
        left = indices[indices != 5]
        return whole.take(left) if len(left) else None

    damaged = replace(whole, take=take)
    found = tune(start, damaged, course=replace(SHORT, batch=1, epochs=1, held_out=0.0), evaluate=lambda run: 0.0)
    assert len(found.history) == 2
    with pytest.raises(DataError, match="none of the training data can be read: give other data"):
        tune(start, replace(whole, take=lambda indices: None), course=replace(SHORT, held_out=0.0), evaluate=lambda run: 0.0)


def test_the_training_did_not_touch_what_it_started_from(start: Quantized) -> None:
    before = {name: tensor.clone() for name, tensor in weights(start).items()}
    tune(start, models.images(), course=SHORT)
    assert all(torch.equal(tensor, weights(start)[name]) for name, tensor in before.items())


@pytest.mark.parametrize("objective", [DISTILLATION, MATCHING, distillation(2.0, features=0.5), LABELS], ids=lambda o: o.name)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_objective_and_optimizer_makes_its_loss_smaller(start: Quantized, objective: Objective, optimizer: str) -> None:
    course = Course(epochs=3, batch=32, rate={"adamw": 1e-2, "sgd": 1e-1}[optimizer], optimizer=optimizer)
    found = tune(start, models.images(), course=course, objective=objective)
    losses = [line.loss for line in found.history if line.loss is not None]
    assert losses[-1] < losses[0]
    if objective.teacher:
        assert found.history[found.best].score > found.history[0].score


def test_a_metric_chooses_the_epoch_where_one_is_given(start: Quantized) -> None:
    data = models.images(seed=3)
    seen: list[float] = []

    def evaluate(run: Run) -> float:
        assert not torch.is_grad_enabled()
        seen.append(measure(ACCURACY, run, data))
        return seen[-1]

    found = tune(start, models.images(), course=replace(SHORT, held_out=0.0), evaluate=evaluate)
    assert [line.score for line in found.history] == seen
    assert found.best == seen.index(max(seen))


def test_a_model_that_gets_no_better_comes_back_as_it_was(start: Quantized) -> None:
    scores = iter((1.0, 0.5, 0.5, 0.5, 0.5))
    course = Course(epochs=10, rate=1e-3, patience=2)
    found = tune(start, models.images(), course=course, evaluate=lambda run: next(scores))
    assert (found.best, len(found.history)) == (0, 3)
    assert same(found.quantized, start)


def test_ranges_may_follow_the_training(start: Quantized) -> None:
    made = tune(
        start, models.images(), course=SHORT, method=lambda s: straight_through(s, ranges=Moving(decay=0.5)), evaluate=_later()
    )
    grids = {name: at for name, at in made.quantized.grids.items() if name not in weights(start)}
    assert any(not at.same_as(start.grids[name]) for name, at in grids.items())
    assert verify(made.quantized, [b.inputs for b in models.images(32, seed=6)]).equal


def _later() -> Callable[[Run], float]:
    """A metric for which each epoch is better than the one before."""
    calls: list[Run] = []
    return lambda run: calls.append(run) or float(len(calls))


def test_progress_tells_every_step_and_the_score_of_every_epoch(start: Quantized) -> None:
    told: list[Moment] = []
    found = tune(start, models.images(), course=SHORT, progress=told.append)
    assert [(m.step, m.epoch, m.score is None) for m in told] == [
        (1, 1, True), (2, 1, True), (3, 1, True), (3, 1, False), (4, 2, True), (5, 2, True), (6, 2, True), (6, 2, False),
    ]  # fmt: skip
    assert {m.steps for m in told} == {6}
    assert [m.score for m in told if m.score is not None] == [line.score for line in found.history[1:]]
    assert all(0 < m.rate <= SHORT.rate for m in told)


# The same again


def test_the_same_seed_gives_the_same_weights_and_the_callers_torch_is_untouched(start: Quantized) -> None:
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    with torch.no_grad():
        a = tune(start, models.images(), course=SHORT)
    torch.rand(3)
    torch.random.set_rng_state(state)
    b = tune(start, models.images(), course=SHORT)
    other = tune(start, models.images(), course=replace(SHORT, seed=1))
    assert same(a.quantized, b.quantized)
    assert a.history == b.history
    assert not same(a.quantized, other.quantized)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads


class Killed(BaseException):
    """A kill: nothing catches it."""


def killer(at: int) -> Callable[[Moment], None]:
    def progress(moment: Moment) -> None:
        if moment.step == at and moment.score is None:
            raise Killed

    return progress


@pytest.mark.parametrize(
    ("kind", "optimizer", "ranges"), [("indexed", "adamw", None), ("streamed", "sgd", Moving(decay=0.9, until=0.8))]
)
def test_a_killed_training_ends_with_the_same_weights(kind: str, optimizer: str, ranges: Moving | None, tmp_path: Path) -> None:
    start = models.quantized(INT4.narrow, "mse")  # scales that stand between two searches are part of the state
    split = models.images() if kind == "indexed" else Streamed(models.images(160).__iter__)
    ask: dict[str, Any] = {"course": replace(SHORT, optimizer=optimizer, held_out=0.3)}
    ask["method"] = lambda s: straight_through(s, ranges=ranges, refresh=4)
    steps: list[Moment] = []
    whole = tune(start, split, progress=steps.append, **ask)
    for at in range(1, steps[-1].step + 1):
        ask |= {"state_path": tmp_path / f"{at}.safetensors", "save_every": 2}
        for kill in (at, at + 2)[: 1 + (at + 2 <= steps[-1].step)]:  # killed once, or twice
            with pytest.raises(Killed):
                tune(start, split, progress=killer(kill), **ask)
        resumed = tune(start, split, **ask)
        assert same(resumed.quantized, whole.quantized), at
        assert (resumed.history, resumed.best) == (whole.history, whole.best)


@pytest.mark.parametrize("name", ["lsq", "exact", "exact_lsq"])
def test_every_method_goes_on_after_a_kill(name: str, tmp_path: Path) -> None:
    start = models.quantized(INT8.narrow, "pairsafe", isa="avx2") if name == "lsq" else models.quantized(INT4.narrow)
    inputs = next(iter(models.images(seed=3))).inputs
    begun = walk(start.program(), inputs)[0]
    ask: dict[str, Any] = {"course": replace(SHORT, held_out=0.0), "method": method_named(name, start.lower)}
    ask["evaluate"] = lambda run: float((run(inputs)[0] - begun).abs().mean())  # any change is better than none
    whole = tune(start, models.images(), **ask)
    ask |= {"state_path": tmp_path / "state.safetensors", "save_every": 2}
    for at in (3, 5):
        with pytest.raises(Killed):
            tune(start, models.images(), progress=killer(at), **ask)
    resumed = tune(start, models.images(), **ask)
    assert same(resumed.quantized, whole.quantized)
    assert resumed.history == whole.history
    assert resumed.best > 0


def test_a_finished_training_is_answered_from_its_state(start: Quantized, tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.safetensors"
    whole = tune(start, models.images(), course=SHORT, state_path=path)
    told: list[Moment] = []
    again = tune(start, models.images(), course=SHORT, state_path=path, progress=told.append)
    assert told == []
    assert same(whole.quantized, again.quantized)


CHILD = """
import os, signal, sys
from pathlib import Path
from tests.training import models
from tests.training.test_tuning import SHORT
from exactq.numerics.formats import INT3
from exactq.training.methods import method_named
from exactq.training.tuning import tune
def progress(moment):
    if moment.step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
start = models.quantized(INT3.narrow)
method = method_named(sys.argv[2], start.lower)
tune(start, models.images(), course=SHORT, method=method, progress=progress, state_path=Path(sys.argv[1]), save_every=1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_process_that_was_really_killed_goes_on(start: Quantized, name: str, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, path, name],
        cwd=root,
        env=os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}"},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert path.exists()
    method = method_named(name, start.lower)
    resumed = tune(start, models.images(), course=SHORT, method=method, state_path=path)
    assert same(resumed.quantized, tune(start, models.images(), course=SHORT, method=method).quantized)


def test_the_state_of_another_training_is_refused(start: Quantized, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    tune(start, models.images(), course=SHORT, state_path=path)
    others: list[dict[str, Any]] = [
        {"course": replace(SHORT, seed=1)},
        {"objective": LABELS},
        {"loader": models.images(seed=1)},
        {"quantized": models.quantized(INT4.narrow)},
        {"method": lsq},
        {"method": lambda s: exact(s, start.lower)},
    ]
    for other in others:
        asked = {"quantized": start, "loader": models.images(), "course": SHORT, "state_path": path} | other
        with pytest.raises(UsageError, match=r"state.safetensors holds the state of another training .*: delete it"):
            tune(asked.pop("quantized"), asked.pop("loader"), **asked)


# What is refused


def test_a_training_that_diverges_says_what_to_do(start: Quantized) -> None:
    def nan_loss(answer: Any) -> Tensor:
        return answer.outputs[0].sum() * torch.nan

    with pytest.raises(DataError, match=r"diverged after 0 of 6 steps: the loss is nan.*lower the rate \(0.01\)"):
        tune(start, models.images(), course=SHORT, objective=Objective("nan", nan_loss), evaluate=lambda run: 0.0)

    def lost(start: Start) -> Simulation:
        """Weights that are infinite after the second step."""
        honest = straight_through(start)

        def advance(state: State, values: Any, step: int, share: float) -> State:
            if step == 2:
                state.trained["fc1.weight"].data[3] = torch.inf
            return honest.advance(state, values, step, share)

        return replace(honest, advance=advance)

    with pytest.raises(
        DataError, match=r"diverged after 2 of 6 steps: an infinity among the weights \(channel 3\).*lower the rate"
    ):
        tune(start, models.images(), course=SHORT, method=lost)


def test_a_score_that_is_no_number_is_refused(start: Quantized) -> None:
    with pytest.raises(DataError, match="the score after epoch 0 is not a number"):
        tune(start, models.images(), course=SHORT, evaluate=lambda run: float("nan"))


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "the data gave no batch: one sample at least is needed"),
        ([torch.zeros(4, 1, 8, 8)], "has 1 batch: it cannot be both trained on and held out"),
        (iter([torch.zeros(4, 1, 8, 8)] * 2), "gone through more than once, so give a list"),
        ([torch.zeros(4, 1, 7, 8)] * 2, r"input `x` has the shape \(4, 1, 7, 8\); the model takes \('batch', 1, 8, 8\)"),
        ([torch.zeros(4, 1, 8, 8).double().fill_(torch.inf)] * 2, r"input 0 has the value inf"),
        ([(torch.zeros(4, 1, 8, 8), torch.zeros(4), torch.zeros(4))] * 2, r"tuple of 3: give \(inputs, labels\)"),
        (models.images(1), "has one sample"),
    ],
)
def test_data_that_does_not_fit_is_named(start: Quantized, loader: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        tune(start, loader, course=SHORT)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "has no labels: train by `distillation`"),
        (torch.full((4,), 3), r"the label 3 is no class of a model with 3 scores: 0..2"),
        (torch.full((4,), -1), r"the label -1 is no class"),
        (torch.zeros(4, 2), r"labels float32 \(4, 2\) are no classes for scores \(4, 3\)"),
    ],
)
def test_labels_that_are_no_classes_are_named(start: Quantized, labels: Tensor | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        tune(start, [Batch((torch.zeros(4, 1, 8, 8),), labels)] * 3, course=SHORT, objective=LABELS)


def test_a_stream_that_changes_its_length_is_refused(start: Quantized) -> None:
    lengths = iter((4, 4, 4, 2, 2, 2))

    class Changing:
        def __iter__(self) -> Any:
            return iter([torch.zeros(4, 1, 8, 8)] * next(lengths))

    with pytest.raises(DataError, match=r"gave \d batches in epoch \d, \d before|gave no batch"):
        tune(start, Changing(), course=replace(SHORT, held_out=0.25))  # type: ignore[arg-type]


def test_a_model_without_weights_has_nothing_to_train() -> None:
    made = flow.quantize(nn.ReLU().eval(), (torch.randn(2, 3, 4, 4),), calibration=[torch.randn(4, 3, 4, 4)])
    with pytest.raises(ModelError, match="nothing to train"):
        tune(made, [torch.randn(4, 3, 4, 4)] * 3)


def test_something_has_to_choose_the_epoch_and_steps_are_whole(start: Quantized) -> None:
    with pytest.raises(UsageError, match="held_out is 0, so nothing chooses"):
        tune(start, models.images(), course=replace(SHORT, held_out=0.0))
    with pytest.raises(UsageError, match="every 0 steps: 1 or more"):
        tune(start, models.images(), course=SHORT, save_every=0)
