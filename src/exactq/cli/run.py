"""exactq run: the whole job, from a model's name to a verified artifact."""

from __future__ import annotations

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
)


def run(
    model: Model,
    weights: Weights = None,
    data: Data = None,
    target: Target = "onnxruntime",
    recipe: RecipeName = "w8a8",
    plan: PlanFile = None,
    metric: Annotated[
        str | None, typer.Option(metavar="M", help="accuracy, cosine or file.py:function; accuracy where there are labels.")
    ] = None,
    max_drop: Annotated[float, typer.Option(metavar="X", help="Accuracy budget, in metric points.")] = 0.005,
    max_error: Annotated[float | None, typer.Option(metavar="X", help="Budget for the mean absolute output error.")] = None,
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
    """Trace, optimise, plan, calibrate, quantize, export, verify and measure MODEL.

    Exit code 1 if the verdict is over_budget, differs or not_quantized.
    """
    from exactq import runs
    from exactq.cli.talking import print_json, talk

    asking = not yes and sys.stdin.isatty() and sys.stderr.isatty()
    facts = runs.run(
        model,
        talk=talk(tables=verbose or asking),
        confirm=(lambda question: typer.confirm(question, default=True, err=True)) if asking else (lambda question: True),
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
        for line in told(facts):
            print(line)
    if facts["verdict"] in ("over_budget", "differs", "not_quantized"):
        raise typer.Exit(1)


def told(facts: dict[str, Any]) -> list[str]:
    """The facts of a run as a person reads them, the verdict first."""
    metric, size, time, found = facts["metric"], facts["size"], facts["latency"], facts["verify"]
    coverage = "no multiply-accumulates" if facts["coverage"] is None else f"{facts['coverage']:.1%} of multiply-accumulates"
    agreement = "" if facts["agreement"] is None else f", agrees on {facts['agreement']:.2%} of the samples"
    sqnr = "identical outputs" if facts["sqnr_db"] is None else f"{facts['sqnr_db']:.1f} dB"
    worst = sorted((x for x in facts["layers"] if x["sqnr_db"] is not None), key=lambda x: x["sqnr_db"])[:3]
    return [
        f"verdict    {facts['verdict']}",
        f"{metric['name']:<10} float {metric['float']:.4f}, emulated {metric['ptq']:.4f}, deployed {metric['deployed']:.4f}",
        f"integers   {coverage}",
        f"verified   {found['elements'] - found['mismatches']:,} of {found['elements']:,} integers equal on {found['inputs']} inputs "
        f"({found['runtime']} {found['version']}, {found['isa']})",
        *(f"unverified {text}" for text in found["unverified"]),
        f"outputs    {sqnr} to the float model{agreement}",
        "weakest    " + ", ".join(f"{x['name']} {x['sqnr_db']:.1f} dB" for x in worst),
        f"size       {size['float_bytes'] / 1024:,.0f} KiB float, {size['artifact_bytes'] / 1024:,.0f} KiB quantized",
        f"latency    {time['float_ms']:.3f} ms float, {time['artifact_ms']:.3f} ms quantized: {time['ratio']:.2f}× "
        f"(batch {time['batch']}, {time['threads']} thread)",
        f"out        {facts['out']}",
    ]
