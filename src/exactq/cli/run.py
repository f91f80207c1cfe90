"""exactq run: the whole job, from a model's name to a verified artifact."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated, Any

import typer

from exactq.cli.options import (
    Calibration,
    Data,
    InputShape,
    Json,
    Model,
    Out,
    PlanFile,
    RandomWeights,
    RecipeName,
    Seed,
    Target,
    Trust,
    Weights,
    number,
)

NO = ("over_budget", "differs", "not_quantized")
"""The verdicts that end with exit code 1."""


def run(
    model: Model,
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

    The stages: capture, optimise, plan, calibrate, quantize, export, verify, measure. In a terminal it shows the plan and asks
    before it goes on. Exit code 1 if the verdict is over_budget, differs or not_quantized.
    """
    from exactq import runs
    from exactq.cli.talking import job, print_json, print_lines, talk

    asking = not (yes or as_json) and all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
    every = ("what the optimisation did", "graph before and after", "plan", "every value")
    speak = talk(tables=every if verbose else ("plan",) if asking else ())
    with job():
        facts = runs.run(
            model,
            talk=speak,
            confirm=_confirm if asking else (lambda question: True),
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
        speak.say(f"again      {shlex.join(['exactq', *sys.argv[1:], '--yes'])}")
    if facts["verdict"] in NO:
        raise typer.Exit(1)


def _confirm(question: str) -> bool:
    """Whether the user agrees; who does not is told how to change the plan, and the answer is no."""
    if typer.confirm(question, default=True, err=True):
        return True
    typer.echo("Nothing was written. To change the plan: `exactq plan`, edit plan.yaml, `exactq run --plan`.", err=True)
    raise typer.Exit(1)


def told(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts of a run as a person reads them, the verdict first: labels and sentences."""
    from exactq.cli.talking import LABEL

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
    return [
        ("verdict", facts["verdict"]),
        (name, f"{said}float {metric['float']:.4f}, emulated {metric['ptq']:.4f}, deployed {metric['deployed']:.4f}"),
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
