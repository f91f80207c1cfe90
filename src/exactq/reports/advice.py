"""What to try next: rules that look at the facts of a run, the gravest first, each with its reason and the way to do it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from exactq.plans.recipes import PORTABLE, RECIPES
from exactq.reports import words
from exactq.reports.facts import Advice, Command, LayerFacts, Word
from exactq.reports.folder import Run

WEAK_DB = 25.0
"""Below this ratio, noise of more than 5 % of the signal, a layer is worth a look."""
CLIPPED = 0.005
"""The share of values beyond a grid from which on it was calibrated too narrowly."""
NAMED = 3
SMALL_MS = 1.0
_PAIRSAFE = f"# in the recipe\nweight_observer: {PORTABLE.weight_observer}"


def advice(run: Run, word: Word, layers: Sequence[LayerFacts]) -> tuple[Advice, ...]:
    """Everything that the facts suggest; empty where there is nothing to gain."""
    rules = (_unmeasured, _differs, _untrained, _not_quantized, _over_budget, _weak, _clipped, _saturates, _floats, _slow)
    return tuple(found for rule in rules for found in rule(run, word, layers))


def commands(run: Run) -> tuple[Command, ...]:
    """The lines that make this run again and check it, to be run in any folder, and in the run's own."""
    artifact = run.manifest.artifact
    adapter = " --extensions=model_explorer_onnx" if artifact.endswith(".onnx") else ""
    return (
        Command(again(run), "makes this run again"),
        Command("exactq verify .", "in this folder: compares every integer on this machine"),
        Command("exactq report .", "in this folder: writes this page anew"),
        Command(
            f"model-explorer {shlex.quote(artifact)}{adapter} --node_data_paths=model_explorer.json",
            "in this folder: shows the file in Model Explorer, its nodes coloured by error",
        ),
    )


def again(run: Run, **changed: str | float | bool) -> str:
    """The command of the run, with some flags changed."""
    manifest, plan = run.manifest, run.quantized.plan
    flags: dict[str, str | float | bool] = {
        "data": manifest.data,
        "target": f"{manifest.target}@{manifest.isa}",
        "recipe": plan.recipe,
        "calibration": manifest.calibration,
        "seed": manifest.seed,
    }
    flags |= {k: v for k, v in manifest.asked.items() if k not in ("model", "out", "target") and v is not None}
    # A plan takes the place of a recipe.
    flags.pop("plan" if "recipe" in changed or "plan" not in flags else "recipe", None)
    parts = ["exactq", "run", manifest.model]
    for name, value in (flags | changed).items():
        flag = f"--{name.replace('_', '-')}"
        parts += [flag] if value is True else [] if value is False else [flag, str(value)]
    return shlex.join(parts)


def _unmeasured(run: Run, word: Word, layers: Sequence[LayerFacts]) -> list[Advice]:
    if word != "unmeasured":
        return []
    return [
        Advice("Measure it", "Accuracy, speed and the runtime's integers are unknown until a run measures them.", again(run))
    ]


def _differs(run: Run, word: Word, layers: Sequence[LayerFacts]) -> list[Advice]:
    if word != "differs" or run.verify is None:
        return []
    first = next((t for t in run.verify.tensors if t.mismatches), None)
    where = f"The first tensor that differs is {first.name}, by up to {first.max_lsb} steps. " if first else ""
    known = run.manifest.versions.get("runtime", "another version")
    rest = "another version or instruction set may compute differently"
    why = f"{where}The prediction is for {run.manifest.target} {known}; {rest}."
    return [Advice("Find where the runtime parts from the prediction", why, "exactq verify .")]


def _untrained(run: Run, word: Word, layers: Sequence[LayerFacts]) -> list[Advice]:
    if word != "untrained":
        return []
    line = again(run, random_weights=False) + " --weights FILE"
    return [
        Advice("Give it trained weights", "Random weights are good for speed and size; accuracy needs the real ones.", line)
    ]


def _not_quantized(run: Run, word: Word, layers: Sequence[LayerFacts]) -> list[Advice]:
    if word != "not_quantized":
        return []
    why = f"No operator with weights runs in integers on {run.manifest.target}; the plan below has the reason of each layer."
    return [Advice("Try another target", why, "exactq targets")]


def _over_budget(run: Run, word: Word, layers: Sequence[LayerFacts]) -> list[Advice]:
    if word != "over_budget":
        return []
    cheap = Advice(
        "Calibrate with another observer",
        "Ranges of least squared error instead of extremes cost nothing at run time.",
        "# recipe.yaml, for --recipe recipe.yaml\nactivation_observer: mse",
    )
    training = run.metrics.training if run.metrics is not None else None
    if training is None:
        why = "A short training on the plan's grids wins back much of what rounding costs, and keeps size and speed."
        return [Advice("Fine-tune", why, again(run, train="always")), cheap]
    if training.failed is not None:
        return [cheap]
    more = again(run, train="always", epochs=2 * training.epochs, train_samples=4 * (training.samples or 1))
    return [Advice("Fine-tune for longer", "More epochs and more samples may win back what is still lost.", more), cheap]


def _weak(run: Run, word: Word, layers: Sequence[LayerFacts]) -> list[Advice]:
    """The layers that add most noise of their own: those whose ratio falls most below what they read."""
    if not _loses(run, word):
        return []
    found = []
    for layer in layers:
        read = [layers[i].sqnr_db for i in layer.reads]
        known = [db for db in read if db is not None]
        if layer.weight is not None and layer.sqnr_db is not None and known and layer.sqnr_db < WEAK_DB:
            found.append((layer.sqnr_db - min(known), layer))
    found = sorted((pair for pair in found if pair[0] < 0), key=lambda pair: pair[0])[:NAMED]
    if not found:
        return []
    names = ", ".join(f"{layer.name} ({words.decibels(layer.sqnr_db or 0.0)})" for _, layer in found)
    coarse = [layer for _, layer in found if layer.weight is not None and layer.weight.grid.hi < 127]
    lines = ["# recipe.yaml, for --recipe recipe.yaml", "rules:"]
    for _, layer in found:
        kept = "weights: int8-narrow" if layer in coarse else "float: true"
        lines.append(f"  - {{match: {{name: {_quoted(_compute(layer))}}}, {kept}, reason: weakest in the last report}}")
    cost = sum(layer.share for _, layer in found if layer not in coarse)
    price = (
        f" Keeping them float moves {words.share(cost)} of the multiply-accumulates out of the integer kernels." if cost else ""
    )
    title = "Give the weakest layers more bits" if len(coarse) == len(found) else "Keep the weakest layers in float"
    return [Advice(title, f"Most noise arises in {names}.{price}", "\n".join(lines))]


def _loses(run: Run, word: Word) -> bool:
    """Whether there is accuracy to win back: nobody should pay speed for a loss that is none."""
    if word == "over_budget":
        return True
    values = run.metrics.metric if run.metrics is not None else {}
    before, after = values.get("float"), values.get("deployed")
    return word == "ok" and isinstance(before, float) and isinstance(after, float) and after < before


def _clipped(run: Run, word: Word, layers: Sequence[LayerFacts]) -> list[Advice]:
    hit = []
    for layer in layers:
        if (seen := layer.activation) is not None:
            outside = seen.below + seen.above
            total = outside + sum(seen.counts)
            if outside > CLIPPED * total:
                hit.append((outside / total, layer.name))
    if not hit:
        return []
    worst = ", ".join(f"{name} ({words.share(part)})" for part, name in sorted(hit, reverse=True)[:NAMED])
    why = f"Values fall outside of what calibration saw: {worst}. More, or more typical, calibration samples widen the grids."
    return [Advice("Calibrate with more data", why, again(run, calibration=4 * run.manifest.calibration))]


def _saturates(run: Run, word: Word, layers: Sequence[LayerFacts]) -> list[Advice]:
    risky = [layer for layer in layers if layer.weight is not None and layer.weight.saturating]
    if not risky or run.quantized.plan.recipe == PORTABLE.name:
        return []
    target = run.quantized.target
    isas = [isa for isa in target.isas if target.ability(isa).saturates]
    here = run.manifest.isa in isas
    pairs = sum(layer.weight.saturating or 0 for layer in risky if layer.weight is not None)
    where = "this machine's kernels" if here else f"machines with {' or '.join(isas)}"
    what = f"{words.several(pairs, 'pair')} of weights in {words.several(len(risky), 'layer')}"
    verb = "can overflow 16-bit sums on" if here else "give other integers on"
    builtin = run.quantized.plan.recipe in RECIPES
    remedy = (
        f"{f'The recipe `{PORTABLE.name}`' if builtin else 'This observer'} chooses weights that no measured machine overflows"
    )
    why = f"{what} {verb} {where} for some inputs. {remedy}."
    return [
        Advice("Make the integers the same on every machine", why, again(run, recipe=PORTABLE.name) if builtin else _PAIRSAFE)
    ]


def _floats(run: Run, word: Word, layers: Sequence[LayerFacts]) -> list[Advice]:
    kept = [layer for layer in layers if layer.kind == "float" and layer.macs]
    if not kept or word == "not_quantized":
        return []
    names = ", ".join(f"{layer.name}: {layer.reason}" for layer in kept[:NAMED])
    part = words.share(sum(layer.share for layer in kept))
    return [Advice("Look at what stays float", f"{part} of the multiply-accumulates run in float. {names}.")]


def _slow(run: Run, word: Word, layers: Sequence[LayerFacts]) -> list[Advice]:
    if run.metrics is None or run.metrics.latency.ratio >= 1:
        return []
    time = run.metrics.latency
    before, after = words.number(time.float_ms), words.number(time.artifact_ms)
    figures = f"A batch of {time.batch} takes {before} ms in float, {after} ms in integers"
    if time.artifact_ms < SMALL_MS:
        why = f"{figures}: in a model this small, overhead outweighs what the arithmetic saves. Its size is the gain."
        return [Advice("Do not expect speed here", why)]
    why = f"{figures}: on this machine the integer kernels are the slower ones. Measure on the device and the batch that count."
    return [Advice("Check the speed on the device", why)]


def _compute(layer: LayerFacts) -> str:
    """The value whose operator has the layer's weight: rules speak of that one."""
    owner = layer.weight.name.rpartition(".")[0] if layer.weight is not None else ""
    return owner if owner in layer.values else layer.values[0]


def _quoted(name: str) -> str:
    """The name as a double-quoted YAML text."""
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
