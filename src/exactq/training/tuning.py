"""Fine-tuning a quantized model on its own grids: the loop, what it keeps, and how it goes on after a kill.

It starts from the calibrated model, whose normalisations are folded: w' = w·γ/σ. So there are no statistics to freeze, and
weights are no longer free in size; rates are those of fine-tuning, not of training from the beginning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from exactq import cache
from exactq.calibration.collect import check_inputs
from exactq.datasets.splits import Batch, Split, fingerprint
from exactq.errors import DataError, ModelError, UsageError
from exactq.graphs.graph import Edit, Graph
from exactq.graphs.programs import program
from exactq.graphs.qdq import REAL
from exactq.metrics import Run
from exactq.numerics.formats import Grid
from exactq.plans import document
from exactq.plans.plan import Fixed, Own, Plan, Slot, dynamic_layers
from exactq.quantization.apply import apply
from exactq.traces import Step, walk
from exactq.training import checkpoint
from exactq.training.checkpoint import Checkpoint
from exactq.training.courses import OPTIMIZERS, Course, rate_at, set_rate
from exactq.training.objectives import DISTILLATION, Answer, Objective
from exactq.training.samples import Loader, batches_in, divided, epoch_of, split_of
from exactq.training.simulation import Finished, Method, Simulation, Start, State
from exactq.training.straight_through import straight_through


class Model(Protocol):
    """What is tuned: the record that `quantize` returns, of a layer above this one."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def float_graph(self) -> Graph:
        """The optimised float model."""

    @property
    def graph(self) -> Graph:
        """The same on the plan's grids."""

    @property
    def plan(self) -> Plan:
        """The plan."""

    @property
    def grids(self) -> Mapping[str, Grid]:
        """The grid of every value and edge that is encoded."""


Q = TypeVar("Q", bound=Model)

SAVE_SECONDS = 30.0
"""How long a training goes on at most without its state being saved; when it is saved changes nothing of it."""


@dataclass(frozen=True)
class Epoch:
    """One line of the history: the mean loss while training (None before it began), and the score after it; more is better.

    `metric` is what `watch` found then; it chooses nothing.
    """

    epoch: int
    loss: float | None
    score: float
    metric: float | None = None


@dataclass(frozen=True)
class Moment:
    """What `progress` is told after each step, and with a score and a metric after each epoch."""

    step: int
    steps: int
    epoch: int
    loss: float
    rate: float
    score: float | None = None
    metric: float | None = None


class Diverged(DataError):
    """Losses, gradients or weights that are no longer finite: the rate is too high, or inputs are extreme."""


@dataclass(frozen=True, eq=False)
class Tuned(Generic[Q]):
    """What `tune` returns: the model of the best epoch, the history, and that epoch; 0 is the model as it came."""

    quantized: Q
    history: tuple[Epoch, ...]
    best: int


def tune(
    quantized: Q,
    loader: Loader,
    *,
    course: Course | None = None,
    objective: Objective = DISTILLATION,
    method: Method = straight_through,
    evaluate: Callable[[Run], float] | None = None,
    watch: Callable[[Run, Split], float] | None = None,
    progress: Callable[[Moment], None] | None = None,
    state_path: Path | None = None,
    save_every: int = 100,
) -> Tuned[Q]:
    """`quantized` with weights and biases, and with some methods the grids, trained; plan, names and observers are the same.

    An epoch is scored by `evaluate(run)`, more is better, or by the negative loss on what the course holds out; `watch(run,
    held)` finds one more number on the latter, for people. With `state_path` the state is written there every `save_every`
    steps, at least twice a minute, and after each epoch, and a training that was killed goes on from it to the same weights,
    bit for bit; the file stays, so asking again gives the same answer at once. Raises `DataError` for data that does not fit,
    `Diverged` for a training that does, `ModelError` for a model without weights, `UsageError` for one with dynamic layers.
    """
    if save_every < 1:
        raise UsageError(f"the state is saved every {save_every} steps: 1 or more")
    course = course if course is not None else Course()
    start = start_of(quantized)
    train, held = divided(split_of(loader), course.held_out, course.seed)
    if held is None and evaluate is None:
        raise UsageError("held_out is 0, so nothing chooses the best epoch: hold a share out, or give `evaluate`")
    with _surroundings(course):
        loop = _Loop(start, method(start), course, objective, train, held, evaluate, watch)
        job = _job(start, loop.simulation, course, objective, train) if state_path is not None else ""
        loop.resume(state_path, job)
        loop.run(progress, save_every)
    finished = loop.simulation.finish(loop.best_state)
    what = (
        "weights, biases and grids were fine-tuned"
        if finished.weights
        else "weights and biases were fine-tuned on the plan's grids"
    )
    note = f"{what} by {objective.name}: epoch {loop.best} of {course.epochs}"
    model = deployed(quantized, finished, *([note] if loop.best else []))
    return Tuned(model, tuple(loop.history), loop.best)


def start_of(quantized: Model) -> Start:
    """The quantized model as the start of a training; `UsageError` where a layer's grid is made at run time."""
    if dynamic := dynamic_layers(quantized.plan):
        raise UsageError(
            f"`{dynamic[0]}` lays a grid over its input at run time, through which no gradient is known: models with such "
            "layers are not trained; take a static recipe, or train the float model"
        )
    constants = quantized.float_graph.constants
    grids = {name: at for name, at in quantized.grids.items() if name not in constants}
    return Start(quantized.float_graph, quantized.graph, quantized.plan, grids)


def deployed(quantized: Q, finished: Finished, *notes: str) -> Q:
    """`quantized` with the constants and activation grids of a finished training; weights and biases are encoded anew.

    Its notes are those of the new encoding, and `notes`.
    """
    edit = Edit(quantized.float_graph)
    for node in list(edit):
        if node.op == "get_attr" and (value := finished.constants.get(edit.value(node))) is not None:
            edit.set_constant(node, value)
    graph = edit.freeze()
    applied = apply(graph, pinned(quantized.plan, graph, finished.grids), {}, given=finished.weights)
    changes: dict[str, Any] = {"float_graph": graph, "graph": applied.graph, "notes": (*applied.notes, *notes)}
    return replace(quantized, **changes)


def pinned(plan: Plan, graph: Graph, grids: Mapping[str, Grid]) -> Plan:
    """The plan with each activation's own grid given: that of `grids`, by value or `value@reader`."""
    constants = graph.constants

    def pin(value: str, name: str, slot: Slot) -> Slot:
        if not isinstance(slot, Own) or value in constants:
            return slot
        return Fixed(slot.format, grids[name].scale.item(), int(grids[name].zero), slot.reason)

    slots = {name: pin(name, name, slot) for name, slot in plan.slots.items()}
    return replace(plan, slots=slots, edges={e: pin(e.value, str(e), slot) for e, slot in plan.edges.items()})


class _Loop:
    """One training: what `tune` was asked, and where it stands."""

    def __init__(
        self,
        start: Start,
        simulation: Simulation,
        course: Course,
        objective: Objective,
        train: Split,
        held: Split | None,
        evaluate: Callable[[Run], float] | None,
        watch: Callable[[Run, Split], float] | None,
    ) -> None:
        self.start, self.simulation, self.course, self.objective = start, simulation, course, objective
        self.train, self.held, self.evaluate, self.watch = train, held, evaluate, watch
        self.teacher = program(start.graph)
        self.features = _features(start) if objective.features else ()
        self.state = simulation.begin()
        self.optimizer = OPTIMIZERS[course.optimizer](self.state.trained, simulation.units(self.state))
        self.per_epoch = batches_in(train, course.batch)
        if not self.per_epoch:
            raise DataError("the training data has no batch: give at least one sample")
        # Where it stands: the epoch, steps done in it, their loss and samples.
        self.epoch, self.done, self.loss, self.samples = 0, 0, 0.0, 0
        self.history: list[Epoch] = []
        self.best, self.best_state = 0, self.state.copy()
        self.path: Path | None = None
        self.job, self.saved = "", perf_counter()

    @property
    def steps(self) -> int:
        return self.per_epoch * self.course.epochs

    def resume(self, path: Path | None, job: str) -> None:
        """Nothing; the training stands where the state in `path` does, or at its beginning."""
        self.path, self.job = path, job
        found = checkpoint.load(path, job) if path is not None else None
        if found is not None:
            self._restore(found)

    def run(self, progress: Callable[[Moment], None] | None, save_every: int) -> None:
        """Nothing; the training is at its end."""
        if not self.history:
            self._score(None)
        while self.epoch < self.course.epochs and not self._tired():
            batches = epoch_of(self.train, self.epoch, size=self.course.batch, seed=self.course.seed, skip=self.done)
            for batch in batches:
                if batch is None:
                    self.done += 1
                    continue
                step = self.epoch * self.per_epoch + self.done
                rate = rate_at(step, self.steps, self.course.rate, self.course.warmup)
                loss = self._step(batch, step, rate)
                if (step + 1) % save_every == 0 or perf_counter() - self.saved > SAVE_SECONDS:
                    self._save()
                if progress is not None:
                    progress(Moment(step + 1, self.steps, self.epoch + 1, loss, rate))
            if self.done != self.per_epoch:
                raise DataError(
                    f"the training data gave {self.done} batches in epoch {self.epoch + 1}, {self.per_epoch} before"
                )
            if not self.samples:
                raise DataError("none of the training data can be read: give other data")
            mean = self.loss / self.samples
            self.epoch, self.done, self.loss, self.samples = self.epoch + 1, 0, 0.0, 0
            self._score(mean)
            if progress is not None:
                at, line = self.epoch * self.per_epoch, self.history[-1]
                rate = rate_at(at - 1, self.steps, self.course.rate, self.course.warmup)
                progress(Moment(at, self.steps, self.epoch, mean, rate, line.score, line.metric))

    def _tired(self) -> bool:
        return self.course.patience is not None and self.epoch - self.best >= self.course.patience

    def _step(self, batch: Batch, step: int, rate: float) -> float:
        loss, values = self._loss(self.state, batch)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self.state.trained.values(), self.course.clip)
        if not (bool(torch.isfinite(loss)) and bool(torch.isfinite(norm))):
            raise self._diverged(f"the loss is {loss.item():g}, the gradient's norm {norm.item():g}")
        set_rate(self.optimizer, rate)
        self.optimizer.step()
        self.state = self.simulation.advance(self.state, values, step + 1, (step + 1) / self.steps)
        self.done, self.samples = self.done + 1, self.samples + len(batch)
        self.loss += loss.item() * len(batch)
        return loss.item()

    def _diverged(self, how: str) -> Diverged:
        return Diverged(
            f"training diverged after {self.epoch * self.per_epoch + self.done} of {self.steps} steps: {how}; lower the rate "
            f"({self.course.rate:g}), or look for extreme inputs"
        )

    def _loss(self, state: State, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        check_inputs(self.start.graph, batch.inputs)
        objective, kept = self.objective, dict[str, Tensor]()
        reference: tuple[Tensor, ...] = ()
        if objective.teacher:

            def see(step: Step, value: Tensor) -> None:
                if step.name in self.features:
                    kept[step.name] = value

            with torch.no_grad():
                reference = walk(self.teacher, batch.inputs, see)
        keep = self.simulation.watched.union(name + REAL for name in self.features)
        try:
            passed = self.simulation.forward(state, batch.inputs, keep)
        except (DataError, ModelError) as error:  # weights for which there is no grid any more
            raise self._diverged(str(error)) from error
        features = {name: (passed.values[name + REAL], kept[name]) for name in self.features}
        labels = batch.labels if objective.labels else None
        loss = objective.loss(Answer(passed.outputs, labels, reference, features))
        return loss, {name: value.detach() for name, value in passed.values.items()}

    def _score(self, loss: float | None) -> None:
        """Nothing; the history has one epoch more, the best is kept, and the state saved."""
        state = self.simulation.settle(self.state)
        with torch.no_grad():
            score = self._held_out(state) if self.evaluate is None else float(self.evaluate(self._run(state)))
            metric = float(self.watch(self._run(state), self.held)) if self.watch and self.held else None
        if math.isnan(score):
            raise Diverged(f"the score after epoch {self.epoch} is not a number: the metric, or the model, is not finite")
        if not self.history or score > self.history[self.best].score:
            self.best, self.best_state = self.epoch, self.state.copy()
        self.history.append(Epoch(self.epoch, loss, score, metric))
        self._save()

    def _run(self, state: State) -> Run:
        return lambda inputs: self.simulation.forward(state, inputs, ()).outputs

    def _held_out(self, state: State) -> float:
        assert self.held is not None
        total, samples = 0.0, 0
        for batch in self.held:
            total += self._loss(state, batch)[0].item() * len(batch)
            samples += len(batch)
        return -total / samples

    def _save(self) -> None:
        """Nothing; the state is in its file, where there is one."""
        if self.path is None:
            return
        facts = {
            "epoch": self.epoch,
            "done": self.done,
            "loss": self.loss,
            "samples": self.samples,
            "best": self.best,
            "history": [asdict(line) for line in self.history],
        }
        tensors = {"random": torch.random.get_rng_state()}
        for what, state in (("now", self.state), ("best", self.best_state)):
            tensors |= {f"{what}/trained/{name}": t for name, t in state.trained.items()}
            tensors |= {f"{what}/kept/{name}": t for name, t in state.kept.items()}
        for index, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{key}": t for key, t in entry.items() if isinstance(t, Tensor)}
        checkpoint.save(Checkpoint(self.job, facts, tensors), self.path)
        self.saved = perf_counter()

    def _restore(self, found: Checkpoint) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in found.tensors.items() if name.startswith(prefix)}

        with torch.no_grad():
            for name, value in part("now/trained/").items():
                self.state.trained[name].copy_(value)
        self.state = State(self.state.trained, part("now/kept/"))
        self.best_state = State(part("best/trained/"), part("best/kept/"))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in part("optimizer/").items():
            index, _, key = name.partition("/")
            moments.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        facts = found.facts
        self.epoch, self.done, self.loss, self.samples = (facts[k] for k in ("epoch", "done", "loss", "samples"))
        self.best, self.history = facts["best"], [Epoch(**line) for line in facts["history"]]
        torch.random.set_rng_state(found.tensors["random"])


def _features(start: Start) -> tuple[str, ...]:
    """The values of the float graph that have a grid of their own in the other."""
    calls = {start.graph.name(node) for node in start.graph.calls}
    return tuple(name for name, slot in start.plan.slots.items() if isinstance(slot, Own) and name in calls)


def _job(start: Start, simulation: Simulation, course: Course, objective: Objective, train: Split) -> str:
    """The hash of what a training depends on: weights, grids, plan, way, settings, first batch and number of samples."""
    tensors = dict(start.trained)
    for name, at in start.grids.items():
        tensors |= {f"{name}/scale": at.scale, f"{name}/zero": at.zero}
    settings = (simulation.name, repr(course), objective.name, document.to_yaml(start.plan))
    return cache.key(cache.digest(tensors), fingerprint(train), *settings)


@contextmanager
def _surroundings(course: Course) -> Iterator[None]:
    """Inside, torch computes with the course's threads and random state, and gradients are on; outside all is as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(course.threads)
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(course.seed)
            yield
    finally:
        torch.set_num_threads(before)
