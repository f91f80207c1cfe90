"""exactq run: the whole job, from a model's name to a verified artifact."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from exactq.cli.options import (
    Calibration,
    Data,
    Epochs,
    InputShape,
    Json,
    Method,
    ObjectiveName,
    OptionalModel,
    Out,
    PlanFile,
    RandomWeights,
    RecipeName,
    Seed,
    Target,
    TrainSamples,
    Trust,
    Weights,
    number,
)

NO = ("over_budget", "differs", "not_quantized")
"""The verdicts that end with exit code 1."""


def run(
    model: OptionalModel = None,
    *,
    weights: Weights = None,
    data: Data = None,
    target: Target = "onnxruntime",
    recipe: RecipeName = None,
    plan: PlanFile = None,
    metric: Annotated[
        str | None, typer.Option(metavar="M", help="accuracy, cosine or file.py:function; accuracy where there are labels.")
    ] = None,
    max_drop: Annotated[
        float,
        typer.Option(metavar="X", parser=number("--max-drop"), help="How many metric points the artifact may lose."),
    ] = 0.005,
    max_error: Annotated[
        float | None,
        typer.Option(
            metavar="X", parser=number("--max-error"), help="Budget for the mean absolute output error; none without."
        ),
    ] = None,
    train: Annotated[
        str, typer.Option(metavar="WHEN", help="Fine-tune: auto (where the budget is exceeded), never or always.")
    ] = "auto",
    method: Method = "straight_through",
    epochs: Epochs = None,
    train_samples: TrainSamples = 8192,
    objective: ObjectiveName = None,
    input_shape: InputShape = None,
    calibration: Calibration = 512,
    seed: Seed = 0,
    out: Out = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Never ask.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the graph before and after, and the plan.")] = False,
    as_json: Json = False,
    trust: Trust = False,
    random_weights: RandomWeights = False,
) -> None:
    """Take MODEL through every stage to a verified artifact.

    The stages: trace, analyse, optimise, plan, calibrate, quantize, verify, measure, fine-tune where the accuracy budget is
    exceeded, export, report. In a terminal it asks before each, and ends with the one command that does the same. A run that
    was killed goes on where it was when it is asked for again. Exit code 1 if the verdict is over_budget, differs or
    not_quantized, or if you stopped it.
    """
    from exactq import runs
    from exactq.cli.talking import job, print_json, print_lines, talk
    from exactq.errors import UsageError
    from exactq.runs.preparation import CHANGES, GRAPHS, PLAN, VALUES

    asking = not (yes or as_json) and all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
    if model is None:
        if not asking:
            raise UsageError("no MODEL is given: name one, like `exactq run simplecnn`; see `exactq run --help`")
        model = asked_for_model()
    every = (CHANGES, GRAPHS, PLAN, VALUES)
    speak = talk(tables=every if verbose else (CHANGES, PLAN) if asking else (), asking=asking)
    with job():
        facts = runs.run(
            model,
            talk=speak,
            train=train,
            method=method,
            epochs=epochs,
            train_samples=train_samples,
            objective=objective,
            weights=weights,
            data=data,
            target=target,
            recipe=recipe,
            plan=plan,
            metric=metric,
            max_drop=max_drop,
            max_error=max_error,
            input_shape=input_shape,
            calibration=calibration,
            seed=seed,
            out=out,
            trust=trust,
            random_weights=random_weights,
        )
    if as_json:
        print_json(facts)
    else:
        print_lines(told(facts))
    if asking:
        speak.say(f"again      {facts['command']}")
    if facts["verdict"] in NO:
        raise typer.Exit(1)


def asked_for_model() -> str:
    """The model that somebody on a terminal names."""
    from exactq.cli.talking import ask
    from exactq.models.catalog import MODELS, model_named
    from exactq.talk import Question

    text = f"Which model? {', '.join(MODELS)}, file.py:factory, timm:NAME, torchvision:NAME"
    return ask(Question("model", text, "simplecnn", check=lambda name: name in MODELS or ":" in name or model_named(name)))


STAGES = {"float": "float", "ptq": "quantized", "qat": "fine-tuned", "deployed": "deployed"}
"""What the models of a run are called."""


def told(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts of a run as a person reads them, the verdict first: labels and sentences."""
    from exactq.cli.talking import LABEL
    from exactq.reports import fine_tuning

    metric, size, time, found = facts["metric"], facts["size"], facts["latency"], facts["verify"]
    coverage = "no multiply-accumulates" if facts["coverage"] is None else f"{facts['coverage']:.1%} of multiply-accumulates"
    agreement = "" if facts["agreement"] is None else f", agrees on {facts['agreement']:.2%} of the samples"
    # Infinite where nothing differs: then the mean error is zero.
    same = "identical to the float model's" if facts["mean_error"] == 0 else "not to be compared with the float model's"
    sqnr = same if facts["sqnr_db"] is None else f"{facts['sqnr_db']:.1f} dB to the float model"
    worst = sorted((x for x in facts["layers"] if x["sqnr_db"] is not None), key=lambda x: x["sqnr_db"])[:3]
    weakest = [("weakest", ", ".join(f"{x['name']} {x['sqnr_db']:.1f} dB" for x in worst))] if worst else []
    name, said = (metric["name"], "") if len(metric["name"]) < LABEL else ("metric", f"{metric['name']}: ")
    differ = "" if found["mismatches"] == 0 else f", off by up to {found['max_lsb']}"
    equal = f"{found['elements'] - found['mismatches']:,} of {found['elements']:,} integers equal on {found['inputs']} inputs"
    speed = f"{time['float_ms']:.3f} ms float, {time['artifact_ms']:.3f} ms quantized: {time['ratio']:.2f}×"
    stages = ("float", "ptq", "qat", "deployed")
    figures = ", ".join(f"{STAGES[key]} {metric[key]:.4f}" for key in stages if metric.get(key) is not None)
    return [
        ("verdict", facts["verdict"]),
        (name, f"{said}{figures}"),
        *([("training", fine_tuning(metric, facts["training"]))] if facts.get("training") else []),
        ("integers", coverage),
        ("verified", f"{equal}{differ} ({found['runtime']} {found['version']}, {found['isa']})"),
        *(("unverified", text) for text in found["unverified"]),
        ("outputs", f"{sqnr}{agreement}"),
        *weakest,
        ("size", f"{size['float_bytes'] / 1024:,.0f} KiB float, {size['artifact_bytes'] / 1024:,.0f} KiB quantized"),
        ("latency", f"{speed} (batch {time['batch']}, {time['threads']} thread)"),
        *(("note", text) for text in facts["notes"]),
        ("out", facts["out"]),
    ]
