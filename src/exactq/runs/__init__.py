"""One run: the whole job from a model's name to a folder with a verified artifact, and what was measured on the way."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from exactq import __version__, flow, reports
from exactq.datasets.catalog import load
from exactq.datasets.splits import Dataset
from exactq.errors import DataError, UsageError
from exactq.graphs import store
from exactq.graphs.graph import Graph, op_name
from exactq.metrics import default_metric, metric_named
from exactq.optimization.pipeline import Optimized, before_after, optimize
from exactq.plans.plan import Float, Own, PerChannel, Plan, Slot, summary
from exactq.quantization.fit import plan_fits
from exactq.quantized import Quantized
from exactq.reports.folder import METRICS, VERIFY
from exactq.runs.folder import check_replaceable, open_model, open_run, staged, write_json, write_manifest
from exactq.runs.measurement import Budget, check_evaluation, measured, notes, samples, sizes, word
from exactq.runs.wishes import RECIPE, Wishes, check_seed
from exactq.sources.capture import capture
from exactq.sources.resolve import Source, resolve
from exactq.talk import SILENT, Talk
from exactq.targets import target_named
from exactq.verification import Verdict, verify

__all__ = ["Wishes", "open_model", "plan", "plan_rows", "quantize", "run", "short_plan_rows", "verify_run"]


def run(
    model: str, *, talk: Talk = SILENT, confirm: Callable[[str], bool] = lambda question: True, **wishes: Any
) -> dict[str, Any]:
    """Model -> run folder, and the facts as plain data (the JSON of `exactq run`); `wishes` are the flags by name.

    The folder appears whole at the end or not at all; one that holds an earlier run is replaced. `confirm(question)` is asked
    before the plan is carried out. Raises the errors of `exactq.errors`.
    """
    asked = Wishes(model, **wishes)
    with _prepared(asked, talk) as (source, optimized, staging):
        check_evaluation(source.dataset, optimized.graph)
        quantized = _quantized(asked, source, optimized, talk, confirm)
        artifact = _write_model(quantized, staging, talk)
        metric = metric_named(asked.metric) if asked.metric is not None else default_metric(source.dataset)
        found, verdict, evaluated = measured(quantized, source.module, source.dataset, metric, artifact, talk)
        budget = Budget(asked.max_drop, asked.max_error)
        facts = _named_facts(source, quantized) | found
        facts["budget"] = {"max_drop": asked.max_drop, "max_error": asked.max_error}
        facts["verdict"] = word(facts["coverage"], verdict, evaluated, budget, trained=source.trained)
        write_json(staging / METRICS, {key: value for key, value in facts.items() if key != "verify"})
        write_json(staging / VERIFY, facts["verify"])
        _finish(asked, source, quantized, staging)
    return {"out": str(asked.folder), **facts}


def quantize(model: str, *, talk: Talk = SILENT, **wishes: Any) -> dict[str, Any]:
    """Model -> folder with plan, graphs and artifact, without measuring anything; what `exactq quantize` does."""
    asked = Wishes(model, **wishes)
    with _prepared(asked, talk) as (source, optimized, staging):
        quantized = _quantized(asked, source, optimized, talk, lambda question: True)
        artifact = _write_model(quantized, staging, talk)
        facts = _named_facts(source, quantized) | {"size": sizes(quantized, artifact), "notes": notes(quantized)}
        _finish(asked, source, quantized, staging)
    return {"out": str(asked.folder), **facts}


def plan(model: str, *, talk: Talk = SILENT, **wishes: Any) -> tuple[Plan, Graph]:
    """The plan for a model's name, and the graph it speaks of; what `exactq plan` does."""
    asked = Wishes(model, **wishes)
    _, optimized = _optimized(asked, talk)
    return _planned(asked, optimized.graph), optimized.graph


def verify_run(folder: str | Path, *, data: str | None = None, inputs: int = 64, seed: int = 0, talk: Talk = SILENT) -> Verdict:
    """The artifact of a run folder on this machine's runtime beside the emulator, on the run's data or on `data`.

    A run whose data came from a Python file needs `data`: nothing that a folder names is executed unasked.
    """
    if inputs < 1:
        raise UsageError(f"--inputs is {inputs}; at least one input is needed, 64 are the default")
    check_seed(seed)
    saved = open_run(Path(folder), data=data)
    for name in saved.changed:
        talk.say(f"note       {name} is not the file that the run wrote")
    names = tuple(i.name for i in saved.quantized.float_graph.inputs)
    shapes = tuple(i.shape[1:] for i in saved.quantized.float_graph.inputs)
    dataset = load(saved.data, calibration=1, seed=seed, inputs=names, shapes=shapes)
    check_evaluation(dataset, saved.quantized.float_graph)
    with talk.track("verify", inputs) as advance:
        batches = (b.inputs for b in dataset.evaluation)
        return verify(saved.quantized, batches, artifact=saved.artifact, inputs=inputs, progress=advance)


def plan_rows(plan: Plan) -> list[tuple[str, ...]]:
    """The plan as rows: value, format, granularity, observer, reason."""
    return [(name, *summary(slot), slot.reason) for name, slot in plan.slots.items()]


def short_plan_rows(plan: Plan) -> list[tuple[str, ...]]:
    """The plan as narrower rows: value; format, granularity and observer in one; reason."""
    return [(name, " ".join(word for word in words if word), reason) for name, *words, reason in plan_rows(plan)]


def layer_rows(graph: Graph, plan: Plan) -> list[tuple[str, ...]]:
    """The plan as one row an operator: its name, itself, its weights' format, and its output's, with the reason where float."""
    rows: list[tuple[str, ...]] = []
    for node in graph.calls:
        name = graph.name(node)
        read = [plan.slots[graph.name(n)] for n in node.all_input_nodes if n.op == "get_attr"]
        weights = "; ".join(_brief(slot) for slot in read if isinstance(slot, Own))
        rows.append((name, op_name(node).removeprefix("aten."), weights, _brief(plan.slots[name])))
    return rows


def _brief(slot: Slot) -> str:
    """A slot in a few words, with the reason where it is float."""
    match slot:
        case Own(fmt, observer, _, per):
            return f"{fmt.name}{' per channel' if isinstance(per, PerChannel) else ''}, {observer}"
        case Float(reason):
            return f"float: {reason}"
    return " ".join(word for word in summary(slot) if word)


@contextmanager
def _prepared(asked: Wishes, talk: Talk) -> Iterator[tuple[Source, Optimized, Path]]:
    """What both kinds of run start with; misuse is found before anything slow, the staging folder is gone afterwards."""
    asked.given_plan()
    check_replaceable(asked.folder)
    with staged(asked.folder) as staging:
        yield (*_optimized(asked, talk), staging)


def _optimized(asked: Wishes, talk: Talk) -> tuple[Source, Optimized]:
    with ExitStack() as stack:
        advance: list[Callable[[int], None]] = []

        def progress(step: int, steps: int, loss: float) -> None:
            if not advance:
                advance.append(stack.enter_context(talk.track(f"train {asked.model}", steps)))
            advance[0](1)

        source = resolve(
            asked.model,
            weights=asked.weights,
            data=asked.data,
            input_shape=asked.input_shape,
            trust=asked.trust,
            random_weights=asked.random_weights,
            seed=asked.seed,
            calibration=asked.calibration,
            progress=progress,
        )
    talk.say(f"model      {source.label}: {source.origin}; data {source.dataset.name}")
    with talk.track("capture", None):
        flow.check_reading(source.module, source.dataset.first.inputs)
        captured = capture(source.module, source.example)
        optimized = optimize(captured)
    before, after = len(captured.calls), len(optimized.graph.calls)
    talk.say(f"graph      operators: {before}, after optimisation {after}{_passes(optimized)}")
    for kept in optimized.kept:
        talk.say(f"kept       {kept.what}")
    talk.show("what the optimisation did", ("value", "change"), [(found.name, found.what) for found in optimized.found])
    rows = [(name, *(op.removeprefix("aten.") for op in ops)) for name, *ops in before_after(captured, optimized.graph)]
    talk.show("graph before and after", ("value", "before", "after", "activation"), rows)
    return source, optimized


def _passes(optimized: Optimized) -> str:
    """What the passes did in a few words: ` (batchnorm ×19, identities ×2)`."""
    counts: dict[str, int] = {}
    for result in optimized.results:
        counts[result.name] = counts.get(result.name, 0) + len(result.found)
    told = ", ".join(f"{name} ×{count}" for name, count in counts.items() if count)
    return f" ({told})" if told else ""


def _planned(asked: Wishes, graph: Graph) -> Plan:
    """The plan that was given, or one made from the recipe."""
    given = asked.given_plan()
    if given is None:
        return flow.plan_graph(graph, target=asked.target, recipe=asked.recipe or RECIPE)
    target, isa = target_named(f"{given.target}@{given.isa}")
    plan_fits(graph, given, target.ability(isa))
    return given


def _quantized(asked: Wishes, source: Source, optimized: Optimized, talk: Talk, confirm: Callable[[str], bool]) -> Quantized:
    graph, dataset = optimized.graph, source.dataset
    chosen = _planned(asked, graph)
    talk.show("plan", ("layer", "operator", "weights", "output"), layer_rows(graph, chosen))
    talk.show("every value", ("value", "codes", "reason"), short_plan_rows(chosen))
    talk.say(f"plan       {chosen.recipe} for {chosen.target}@{chosen.isa}: {_shares(graph, chosen)}")
    if not confirm("Quantize with this plan?"):
        raise UsageError("stopped before quantizing, as asked; nothing was written")
    _refuse_constant(dataset)
    with talk.track("calibrate", samples(dataset.calibration)) as advance:
        made = flow.quantize_graph(graph, calibration=(b.inputs for b in dataset.calibration), plan=chosen, progress=advance)
    return made


def _shares(graph: Graph, plan: Plan) -> str:
    """How many operators become integers."""
    calls = [graph.name(node) for node in graph.calls]
    floats = sum(isinstance(plan.slots[name], Float) for name in calls)
    return f"{len(calls) - floats} of {len(calls)} operators on codes"


def _refuse_constant(dataset: Dataset) -> None:
    first = dataset.first.inputs
    for position, x in enumerate(first):
        if x.is_floating_point() and x.numel() > 1 and bool((x == x.flatten()[0]).all()) and _all_same(dataset, position):
            value = float(x.flatten()[0])
            raise DataError(
                f"every calibration value of input {position} is {value:g}: a range cannot be learned from constant data; "
                "calibrate with real inputs"
            )


def _all_same(dataset: Dataset, position: int) -> bool:
    value = dataset.first.inputs[position].flatten()[0]
    return all(bool((b.inputs[position] == value).all()) for b in dataset.calibration)


def _write_model(quantized: Quantized, staging: Path, talk: Talk) -> bytes:
    with talk.track("export", None):
        quantized.save(staging)
        artifact = quantized.artifact()
        store.write(staging / f"model{quantized.target.suffix}", artifact)
    return artifact


def _named_facts(source: Source, quantized: Quantized) -> dict[str, Any]:
    plan = quantized.plan
    return {"model": source.label, "target": f"{plan.target}@{plan.isa}", "recipe": plan.recipe}


def _finish(asked: Wishes, source: Source, quantized: Quantized, staging: Path) -> None:
    """Write the manifest, and the report on what it names."""
    write_manifest(
        staging,
        {
            "exactq": __version__,
            "model": asked.model,
            "data": source.dataset.name if asked.data is None else asked.data,
            "artifact": f"model{quantized.target.suffix}",
            "target": quantized.plan.target,
            "isa": quantized.plan.isa,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "runtime": quantized.target.version},
            "seed": asked.seed,
            "calibration": asked.calibration,
            "asked": asdict(asked),
        },
    )
    reports.write(staging)
