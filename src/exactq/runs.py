"""One run: the whole job from a model's name to a folder with a verified artifact, and what was measured on the way."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exactq import __version__, flow
from exactq.datasets.catalog import CALIBRATION, load
from exactq.datasets.splits import Dataset, Indexed, Split
from exactq.errors import DataError, ModelError, UsageError
from exactq.fidelity import Outputs, layer_sqnr
from exactq.graphs import store
from exactq.graphs.graph import Graph
from exactq.metrics import Metric, default_metric, measure, metric_named
from exactq.optimization.pipeline import Optimized, before_after, optimize
from exactq.plans.plan import Plan, summary
from exactq.plans.recipes import recipe_named
from exactq.quantized import Quantized
from exactq.quantized import load as load_quantized
from exactq.sources.capture import capture
from exactq.sources.resolve import Source, resolve
from exactq.talk import SILENT, Talk
from exactq.targets import target_named
from exactq.timing import Latency, latency
from exactq.traces import walk
from exactq.verification import Verdict, verify

MANIFEST, METRICS, VERIFY = "manifest.json", "metrics.json", "verify.json"
MAX_DROP = 0.005
LAYER_SAMPLES = 64


@dataclass(frozen=True)
class Wishes:
    """What `exactq run` and `exactq quantize` are asked for; the names are those of the flags."""

    model: str
    weights: str | None = None
    data: str | None = None
    target: str = "onnxruntime"
    recipe: str = "w8a8"
    plan: str | None = None
    metric: str | None = None
    max_drop: float = MAX_DROP
    max_error: float | None = None
    input_shape: str | None = None
    calibration: int = CALIBRATION
    seed: int = 0
    out: str | None = None
    trust: bool = False
    random_weights: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_drop) and self.max_drop >= 0):
            raise UsageError(f"--max-drop is {self.max_drop}; it needs a number of metric points from 0 up, like {MAX_DROP}")
        if self.max_error is not None and not (math.isfinite(self.max_error) and self.max_error >= 0):
            raise UsageError(f"--max-error is {self.max_error}; it needs a mean absolute output error from 0 up")


def run(model: str, *, talk: Talk = SILENT, confirm: Callable[[str], bool] = lambda question: True, **wishes: Any) -> dict[str, Any]:
    """Model -> run folder, and the facts as plain data (the JSON of `exactq run`); `wishes` are the flags by name.

    The folder appears whole at the end or not at all; one that holds an earlier run is replaced. `confirm(question)` is asked
    before the plan is carried out. Raises the errors of `exactq.errors`.
    """
    asked = Wishes(model, **wishes)
    with _prepared(asked, talk) as (source, optimized, staging, out):
        quantized = _quantized(asked, source, optimized, talk, confirm)
        artifact = _write_model(quantized, staging, talk)
        facts = _measured(asked, source, quantized, artifact, talk)
        _write_facts(asked, source, quantized, facts, staging)
        _publish(staging, out)
    return {"out": str(out), **facts}


def quantize(model: str, *, talk: Talk = SILENT, **wishes: Any) -> dict[str, Any]:
    """Model -> folder with plan, graphs and artifact, without measuring anything; what `exactq quantize` does."""
    asked = Wishes(model, **wishes)
    with _prepared(asked, talk) as (source, optimized, staging, out):
        quantized = _quantized(asked, source, optimized, talk, lambda question: True)
        artifact = _write_model(quantized, staging, talk)
        facts = _named_facts(asked, source, quantized) | {"size": _sizes(quantized, artifact), "notes": list(quantized.notes)}
        _write_manifest(asked, source, quantized, staging)
        _publish(staging, out)
    return {"out": str(out), **facts}


def plan(model: str, *, talk: Talk = SILENT, **wishes: Any) -> tuple[Plan, Graph]:
    """The plan for a model's name, and the graph it speaks of; what `exactq plan` does."""
    asked = Wishes(model, **wishes)
    target_named(asked.target)
    recipe_named(asked.recipe)
    _, optimized = _optimized(asked, talk)
    return flow.plan_graph(optimized.graph, target=asked.target, recipe=asked.recipe), optimized.graph


def verify_run(
    folder: str | Path, *, data: str | None = None, inputs: int = 64, seed: int = 0, talk: Talk = SILENT
) -> Verdict:
    """The artifact of a run folder on this machine's runtime beside the emulator, on the run's data or on `data`.

    A run whose data came from a Python file needs `data`: nothing that a folder names is executed unasked.
    """
    if inputs < 1:
        raise UsageError(f"--inputs is {inputs}; at least one input is needed, 64 are the default")
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"there is no run folder {folder}: make one with `exactq run`")
    quantized = load_quantized(folder)
    manifest = _read_manifest(folder)
    artifact = _read(folder / manifest["artifact"])
    if data is None:
        data = str(manifest["data"])
        if ".py" in data:
            raise UsageError(f"the run's data came from {data}, which is not executed unasked: give it again with --data")
    dataset = load(data, calibration=1, seed=seed, inputs=tuple(i.name for i in quantized.float_graph.inputs))
    with talk.track("verify", inputs) as advance:
        return verify(quantized, (b.inputs for b in dataset.evaluation), artifact=artifact, inputs=inputs, progress=advance)


@contextmanager
def _prepared(asked: Wishes, talk: Talk) -> Iterator[tuple[Source, Optimized, Path, Path]]:
    """What both kinds of run start with; misuse is found before anything slow, the staging folder is gone afterwards."""
    target, _ = target_named(asked.target)
    recipe_named(asked.recipe)
    if asked.metric is not None:
        metric_named(asked.metric)
    if asked.plan is not None:
        flow.given_plan(asked.plan)
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in asked.model.rpartition("/")[2].replace(".py:", "-"))
    out = Path(asked.out) if asked.out is not None else Path("runs", f"{name}-{target.name}")
    _refuse_foreign(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UsageError(f"cannot write to {out.parent}: {error.strerror}; choose another folder with --out") from error
    try:
        source, optimized = _optimized(asked, talk)
        yield source, optimized, staging, out
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _refuse_foreign(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise UsageError(f"{out} holds files that are no run of exactq, and a run replaces its folder: choose another --out")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; --out needs a folder")


def _optimized(asked: Wishes, talk: Talk) -> tuple[Source, Optimized]:
    with talk.track(f"load {asked.model}", None) as advance:
        source = resolve(
            asked.model,
            weights=asked.weights,
            data=asked.data,
            input_shape=asked.input_shape,
            trust=asked.trust,
            random_weights=asked.random_weights,
            seed=asked.seed,
            calibration=asked.calibration,
            progress=lambda step, steps, loss: advance(1),
        )
    talk.say(f"model {source.label}: {source.origin}; data {source.dataset.name}")
    captured = capture(source.module, source.example)
    optimized = optimize(captured)
    rows = before_after(captured, optimized.graph)
    talk.say(f"graph: {len(captured.calls)} operators, {len(optimized.graph.calls)} after optimisation")
    for found in optimized.found:
        talk.say(f"  {found.name}: {found.what}")
    for kept in optimized.kept:
        talk.say(f"  kept {kept.name}: {kept.what}")
    talk.show("graph before and after", ("value", "before", "after", "activation"), list(rows))
    return source, optimized


def _quantized(
    asked: Wishes, source: Source, optimized: Optimized, talk: Talk, confirm: Callable[[str], bool]
) -> Quantized:
    graph = optimized.graph
    if asked.plan is not None:
        chosen = flow.given_plan(asked.plan)
    else:
        chosen = flow.plan_graph(graph, target=asked.target, recipe=asked.recipe)
    talk.show("plan", ("value", "format", "grid", "observer", "reason"), plan_rows(chosen))
    if not confirm("quantize with this plan?"):
        raise UsageError("stopped before quantizing, as asked; nothing was written")
    _refuse_constant(source.dataset)
    with talk.track("calibrate", _samples(source.dataset.calibration)) as advance:
        made = flow.quantize_graph(graph, calibration=(b.inputs for b in source.dataset.calibration), plan=chosen, progress=advance)
    for note in made.notes:
        talk.say(f"note: {note}")
    return made


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


def _samples(split: Split) -> int | None:
    return split.samples if isinstance(split, Indexed) else None


def plan_rows(plan: Plan) -> list[tuple[Any, ...]]:
    """The plan as rows: value, format, granularity, observer, reason."""
    return [(name, *summary(slot), slot.reason) for name, slot in plan.slots.items()]


def _write_model(quantized: Quantized, staging: Path, talk: Talk) -> bytes:
    with talk.track("export", None):
        quantized.save(staging)
        artifact = quantized.artifact()
        store.write(staging / f"model{quantized.target.suffix}", artifact)
    return artifact


def _measured(asked: Wishes, source: Source, quantized: Quantized, artifact: bytes, talk: Talk) -> dict[str, Any]:
    """Everything that `run` reports: metric, coverage, fidelity, size, latency, verification and the verdict."""
    data = source.dataset
    metric = metric_named(asked.metric) if asked.metric is not None else default_metric(data)
    with talk.track("verify", LAYER_SAMPLES) as advance:
        verdict = verify(quantized, (b.inputs for b in data.evaluation), artifact=artifact, progress=advance)
    emulator, deployed = quantized.program(verdict.isa), quantized.target.timed(artifact, 0)
    values: dict[str, float | None] = {"qat": None}
    outputs = Outputs()

    def floats(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return _flat(source.module(*inputs))

    def both(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        answer = deployed(inputs)
        outputs.add(floats(inputs), answer)
        return answer

    for key, model in (("float", floats), ("ptq", lambda x: walk(emulator, x)), ("deployed", both)):
        with talk.track(f"evaluate {key}", _samples(data.evaluation)) as advance:
            values[key] = measure(metric, _counting(model, advance), data.evaluation, reference=floats)
    layers = layer_sqnr(quantized, (b.inputs for b in _some(data.evaluation)))
    float_file = quantized.target.emit(quantized.float_graph)
    timed = _latency(quantized, float_file, artifact, source.example)
    coverage = quantized.coverage()
    facts = _named_facts(asked, source, quantized) | {
        "metric": {"name": metric.name, **{k: values[k] for k in ("float", "ptq", "qat", "deployed")}},
        "coverage": coverage,
        "agreement": outputs.agreement,
        "sqnr_db": _finite(outputs.ratio.decibels),
        "mean_error": outputs.mean_error,
        "layers": [{"name": name, "sqnr_db": _finite(db)} for name, db in layers.items()],
        "size": _sizes(quantized, artifact, float_file),
        "latency": timed.to_json(),
        "verify": verdict.to_json(),
        "notes": list(quantized.notes),
    }
    return facts | {"verdict": _verdict(asked, source, metric, values, outputs, coverage, verdict)}


def _counting(
    model: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]], advance: Callable[[int], None]
) -> Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def counted(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        answer = model(inputs)
        advance(len(inputs[0]))
        return answer

    return counted


def _verdict(
    asked: Wishes,
    source: Source,
    metric: Metric,
    values: dict[str, float | None],
    outputs: Outputs,
    coverage: float | None,
    verdict: Verdict,
) -> str:
    """The one word: what speaks against the artifact, the gravest first."""
    if not coverage:
        return "not_quantized"
    if not verdict.equal:
        return "differs"
    if not source.trained:
        return "untrained"
    before, after = values["float"], values["deployed"]
    assert before is not None and after is not None
    # A cosine's float value is 1 by definition, so the drop is measured from there for every metric.
    over = before - after > asked.max_drop or (asked.max_error is not None and outputs.mean_error > asked.max_error)
    return "over_budget" if over else "ok"


def _finite(value: float) -> float | None:
    """The number, or None for an infinity, which JSON cannot say."""
    return value if math.isfinite(value) else None


def _some(split: Split) -> Split:
    return split.first(LAYER_SAMPLES)


def _flat(value: Any) -> tuple[Tensor, ...]:
    if isinstance(value, Tensor):
        return (value,)
    values = value.values() if isinstance(value, dict) else value
    return tuple(t for v in values for t in _flat(v))


def _latency(quantized: Quantized, float_file: bytes, artifact: bytes, example: Sequence[Tensor]) -> Latency:
    one = tuple(x[:1] if i.batch else x for x, i in zip(example, quantized.float_graph.inputs, strict=True))
    target = quantized.target
    return latency(target.timed(float_file, 1), target.timed(artifact, 1), one, threads=1)


def _sizes(quantized: Quantized, artifact: bytes, float_file: bytes | None = None) -> dict[str, int]:
    float_bytes = quantized.target.emit(quantized.float_graph) if float_file is None else float_file
    return {"float_bytes": len(float_bytes), "artifact_bytes": len(artifact)}


def _named_facts(asked: Wishes, source: Source, quantized: Quantized) -> dict[str, Any]:
    plan = quantized.plan
    return {"model": source.label, "target": f"{plan.target}@{plan.isa}", "recipe": plan.recipe}


def _write_facts(asked: Wishes, source: Source, quantized: Quantized, facts: dict[str, Any], staging: Path) -> None:
    _write_json(staging / METRICS, {k: v for k, v in facts.items() if k != "verify"})
    _write_json(staging / VERIFY, facts["verify"])
    _write_manifest(asked, source, quantized, staging)


def _write_manifest(asked: Wishes, source: Source, quantized: Quantized, staging: Path) -> None:
    hashes = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(staging.iterdir())}
    manifest = {
        "exactq": __version__,
        "model": asked.model,
        "data": source.dataset.name if asked.data is None else asked.data,
        "artifact": f"model{quantized.target.suffix}",
        "target": quantized.plan.target,
        "isa": quantized.plan.isa,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "runtime": quantized.target.version},
        "seed": asked.seed,
        "calibration": asked.calibration,
        "sha256": hashes,
    }
    _write_json(staging / MANIFEST, manifest)


def _write_json(path: Path, content: Any) -> None:
    store.write(path, (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _publish(staging: Path, out: Path) -> None:
    """Put the finished folder in its place; an earlier run stands until the new one is whole."""
    os.chmod(staging, 0o755)
    old = None
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
        os.rename(out, old / "run")
    os.rename(staging, out)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(_read(folder / MANIFEST))
    except ValueError as error:
        raise ModelError(f"{folder / MANIFEST} is damaged: {error}") from error
    artifact = manifest.get("artifact") if isinstance(manifest, dict) else None
    if not isinstance(artifact, str) or Path(artifact).name != artifact or not isinstance(manifest.get("data"), str):
        raise ModelError(f"{folder / MANIFEST} names no artifact and data: the folder is damaged")
    return manifest


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"the run folder is not whole: {path} cannot be read ({error.strerror})") from error

