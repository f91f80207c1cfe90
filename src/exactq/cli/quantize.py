"""exactq quantize: plan, calibrate and export, without measuring."""

from __future__ import annotations

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


def quantize(
    model: Model,
    *,
    weights: Weights = None,
    data: Data = None,
    target: Target = "onnxruntime",
    recipe: RecipeName = None,
    plan: PlanFile = None,
    input_shape: InputShape = None,
    calibration: Calibration = 512,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
    trust: Trust = False,
    random_weights: RandomWeights = False,
) -> None:
    """Write MODEL's plan, graphs and artifact, and measure nothing.

    They go into a run folder, from where `exactq verify` and `exactq export` take them.
    """
    from exactq import runs
    from exactq.cli.talking import job, print_json, talk

    speak = talk()
    with job():
        facts = runs.quantize(
            model,
            talk=speak,
            weights=weights,
            data=data,
            target=target,
            recipe=recipe,
            plan=plan,
            input_shape=input_shape,
            calibration=calibration,
            seed=seed,
            out=out,
            trust=trust,
            random_weights=random_weights,
        )
        for note in facts["notes"]:
            speak.say(f"note       {note}")
    if as_json:
        print_json(facts)
    else:
        typer.echo(facts["out"])
