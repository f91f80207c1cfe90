"""What a run measures: the float model, the emulator and the artifact on the same batches, and the verdict in one word."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from exactq.datasets.splits import Dataset, Indexed, Split
from exactq.errors import DataError, ModelError
from exactq.fidelity import Outputs, layer_sqnr
from exactq.graphs.graph import Graph
from exactq.metrics import Metric, Seen
from exactq.plans.plan import Float, Own, dynamic_layers
from exactq.plans.recipes import PORTABLE
from exactq.quantized import Quantized
from exactq.reports import activation_histograms, explained_integers
from exactq.talk import Talk
from exactq.timing import Latency, latency
from exactq.traces import Step, walk
from exactq.verification import verify

SAMPLES = 64
"""How many samples are verified, and walked layer by layer."""

MODELS = ("float", "emulated", "deployed")
"""The float model as it came, its predicted integers, the artifact on the real runtime."""

Run = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Evaluated:
    """The metric of each of `MODELS`, and the artifact's outputs beside the float model's."""

    values: Mapping[str, float]
    outputs: Outputs


@dataclass(frozen=True)
class Budget:
    """How much worse the artifact may be: `drop` in metric points, `error` as mean absolute difference of outputs."""

    drop: float
    error: float | None


def samples(split: Split) -> int | None:
    """How many samples a split has, where that is known before it ends."""
    return split.samples if isinstance(split, Indexed) else None


def evaluate(metric: Metric, models: Mapping[str, Run], split: Split, talk: Talk) -> Evaluated:
    """The metric of each model on `split`, in one pass: each batch is fetched once and each model sees it once."""
    states = {name: metric.start() for name in models}
    outputs = Outputs()
    with talk.track("evaluate", samples(split)) as advance, torch.no_grad():
        for batch in split:
            answers = {name: model(batch.inputs) for name, model in models.items()}
            for name, answer in answers.items():
                states[name] = metric.see(states[name], Seen(answer, batch.labels, answers["float"]))
            outputs.add(answers["float"], answers["deployed"])
            advance(len(batch))
    return Evaluated({name: metric.result(state) for name, state in states.items()}, outputs)


def float_run(module: nn.Module) -> Run:
    """The float model as a function to a flat tuple of tensors, as the graph and the artifact return it."""

    def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(t for t in _pytree.tree_leaves(module(*inputs)) if isinstance(t, Tensor))

    return run


def measured(
    quantized: Quantized, float_model: Run, dataset: Dataset, metric: Metric, artifact: bytes, talk: Talk
) -> dict[str, Any]:
    """What a quantized model is worth, as plain data: its integers verified, its metric, and its layers beside the float ones.

    `values` has the metric of each of `MODELS`.
    """
    some = dataset.evaluation.first(SAMPLES)
    with talk.track("verify", SAMPLES) as advance:
        verdict = verify(quantized, (b.inputs for b in some), runtime=quantized.target.open(artifact), progress=advance)
    emulator = quantized.program(verdict.isa)
    models = {
        "float": float_model,
        "emulated": lambda inputs: walk(emulator, inputs),
        "deployed": quantized.target.timed(artifact, 0),
    }
    found = evaluate(metric, models, dataset.evaluation, talk)
    with talk.track("compare", None):
        layers = layer_sqnr(quantized, (b.inputs for b in some))
        histograms = {name: asdict(h) for name, h in activation_histograms(quantized, (b.inputs for b in some)).items()}
        elsewhere = differing(quantized, verdict.isa, some)
        integers = explained_integers(quantized, _one(quantized, some), isa=verdict.isa)
    facts = {
        "metric": metric.name,
        "values": dict(found.values),
        "coverage": quantized.coverage(),
        "agreement": found.outputs.agreement,
        "sqnr_db": found.outputs.ratio.decibels,
        "mean_error": found.outputs.mean_error,
        "layers": [{"name": name, "sqnr_db": db} for name, db in layers.items()],
        "activations": histograms,
        "integers": [asdict(found) for found in integers],
        "verify": verdict.to_json(),
        "notes": [*notes(quantized), *elsewhere],
    }
    return plain(facts)


def _one(quantized: Quantized, split: Split) -> tuple[Tensor, ...]:
    """The first sample as a batch, or the whole first batch of a model that takes no other size."""
    inputs = next(iter(split)).inputs
    whole = not all(spec.batch for spec in quantized.float_graph.inputs)
    return tuple(x if whole else x[:1] for x in inputs)


def costs(quantized: Quantized, artifact: bytes, example: Sequence[Tensor], talk: Talk) -> dict[str, Any]:
    """What the artifact costs beside the same graph in float, as plain data: its size and its latency on one sample."""
    float_file = quantized.target.emit(quantized.float_graph)
    with talk.track("time", None):
        timed = _latency(quantized, float_file, artifact, example)
    return plain({"size": sizes(quantized, artifact, float_file), "latency": timed.to_json()})


def word(facts: Mapping[str, Any], budget: Budget, *, trained: bool) -> str:
    """The verdict on what `measured` found: what speaks against the artifact, the gravest first, or `ok`."""
    values, found, error = facts["values"], facts["verify"], facts["mean_error"]
    if not facts["coverage"]:
        return "not_quantized"
    if found["mismatches"] or not found["elements"]:
        return "differs"
    if not trained:
        return "untrained"
    over = values["float"] - values["deployed"] > budget.drop
    # None is an error that is no finite number, which is over every budget.
    over = over or (budget.error is not None and (error is None or error > budget.error))
    return "over_budget" if over else "ok"


def differing(quantized: Quantized, here: str, split: Split) -> list[str]:
    """A sentence for each other measured instruction set on which the emulator gives other integers for these samples."""
    programs = {isa: quantized.program(isa) for isa in dict.fromkeys((here, *quantized.target.isas))}
    counts = dict.fromkeys(programs, 0)
    total, size = 0, 0

    def codes(isa: str, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        kept: list[Tensor] = []

        def see(step: Step, value: Tensor) -> None:
            if step.grid is not None:
                kept.append(value)

        walk(programs[isa], inputs, see)
        return kept

    if len(programs) == 1:
        return []
    with torch.no_grad():
        for batch in split:
            mine = codes(here, batch.inputs)
            total, size = total + sum(value.numel() for value in mine), size + len(batch)
            for isa in programs:
                if isa != here:
                    counts[isa] += sum(int((a != b).sum()) for a, b in zip(mine, codes(isa, batch.inputs), strict=True))
    hint = (
        "" if quantized.plan.recipe == PORTABLE.name else f" (the recipe `{PORTABLE.name}` keeps int16 pairs from saturating)"
    )
    return [
        f"on {isa} this file gives other integers than here: {count:,} of {total:,} on {size} inputs{hint}"
        for isa, count in counts.items()
        if count
    ]


def notes(quantized: Quantized) -> list[str]:
    """What the numbers do not say, in sentences: what was done beyond the plan, what stays float, how weights are stored."""
    graph, plan = quantized.float_graph, quantized.plan
    reasons: dict[str, list[str]] = {}
    dynamic = dynamic_layers(plan)
    for node in graph.calls:
        if graph.name(node) in dynamic:
            continue
        if isinstance(slot := plan.slots[graph.name(node)], Float):
            reasons.setdefault(slot.reason, []).append(f"`{graph.name(node)}`")
    floats = [f"{', '.join(names)} in float: {reason}" for reason, names in reasons.items()]
    at_run_time = [f"{', '.join(f'`{n}`' for n in dynamic)}: the input is encoded at run time, by the batch"] if dynamic else []
    wider = [
        f"{entry['format']} weights are stored in {entry['stored_bits']} bits: {plan.target} has no {entry['bits']}-bit kernel"
        for entry in stored_weights(quantized)
        if entry["bits"] != entry["stored_bits"]
    ]
    return [*quantized.notes, *at_run_time, *floats, *wider]


def sizes(quantized: Quantized, artifact: bytes, float_file: bytes | None = None) -> dict[str, Any]:
    """The bytes of the same graph as the target's file in float and in integers, and how weights are stored in it."""
    whole = quantized.target.emit(quantized.float_graph) if float_file is None else float_file
    return {"float_bytes": len(whole), "artifact_bytes": len(artifact), "weights": stored_weights(quantized)}


def stored_weights(quantized: Quantized) -> list[dict[str, Any]]:
    """One entry for each format of weights: how many values, bits of a code, and bits that the artifact spends on it."""
    plan = quantized.plan
    stored = quantized.target.ability(plan.isa).stored_bits
    counts: dict[tuple[str, int], int] = {}
    for name, tensor in quantized.float_graph.constants.items():
        if isinstance(slot := plan.slots[name], Own):
            key = slot.format.name, slot.format.bits
            counts[key] = counts.get(key, 0) + tensor.numel()
    return [
        {"format": name, "values": count, "bits": bits, "stored_bits": stored.get(bits, bits)}
        for (name, bits), count in counts.items()
    ]


def check_evaluation(dataset: Dataset, graph: Graph) -> None:
    """Nothing, or the error of data that the model does not take: number, shapes and kinds of its inputs."""
    wanted, given = graph.inputs, dataset.first.inputs
    names = ", ".join(i.name for i in wanted)
    if len(given) != len(wanted):
        raise DataError(f"`{dataset.name}` gives {len(given)} inputs, the model takes {len(wanted)}: {names}")
    for spec, tensor in zip(wanted, given, strict=True):
        if tensor.shape[1:] != spec.shape[1:] or tensor.dtype != spec.dtype:
            raise DataError(
                f"`{dataset.name}` gives {_kind(tensor.dtype)} {tuple(tensor.shape[1:])} for input `{spec.name}`, "
                f"the model takes {_kind(spec.dtype)} {spec.shape[1:]} a sample"
            )
        if not spec.batch and tensor.shape[0] != spec.shape[0]:
            raise ModelError(f"the model only takes batches of {spec.shape[0]} for input `{spec.name}`, not {tensor.shape[0]}")


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _latency(quantized: Quantized, float_file: bytes, artifact: bytes, example: Sequence[Tensor]) -> Latency:
    one = tuple(x[:1] if i.batch else x for x, i in zip(example, quantized.float_graph.inputs, strict=True))
    target = quantized.target
    return latency(target.timed(float_file, 1), target.timed(artifact, 1), one, threads=1)


def plain(value: Any) -> Any:
    """The same data with None for infinities and NaN, which JSON cannot say.

    >>> plain({"sqnr_db": float("inf"), "layers": [1, 2.5]})
    {'sqnr_db': None, 'layers': [1, 2.5]}
    """
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
    return value
