"""exactq train: fine-tune what a run made, through its own rounding, into a folder of its own."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from exactq.cli.options import Data, Epochs, Json, Method, ObjectiveName, Out, Seed, TrainSamples


def train(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or the folder of a quantized model (with --data).")],
    *,
    method: Method = "exact",
    data: Data = None,
    epochs: Epochs = None,
    train_samples: TrainSamples = 8192,
    objective: ObjectiveName = None,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Fine-tune RUN on its own grids, through the runtime's own integers.

    RUN stays as it is; the model goes into a folder of its own, RUN-trained unless --out says otherwise, from where
    `exactq verify`, `bench` and `export` take it. The epoch is chosen on training samples that are held out. A training that
    was killed goes on where it was when it is asked for again. Exit code 1 if no epoch was better: then nothing is written.
    """
    from exactq.cli.talking import job, print_json, print_lines, talk
    from exactq.runs.training import train_run

    with job():
        facts = train_run(
            run,
            talk=talk(),
            method=method,
            data=data,
            epochs=epochs,
            train_samples=train_samples,
            objective=objective,
            seed=seed,
            out=out,
        )
    if as_json:
        print_json(facts)
    else:
        print_lines(told(facts))
    if facts["out"] is None:
        raise typer.Exit(1)


def told(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts of a training as a person reads them."""
    training, metric = facts["training"], facts["metric"]["name"]
    course = f"epoch {training['best']} of {training['epochs']} by {training['objective']}, {training['method']}"
    if facts["out"] is None:
        why = training["failed"] or f"no epoch of {training['epochs']} was better on held-out samples"
        return [("verdict", "did not help"), ("training", why)]
    before, after = facts["metric"]["before"], facts["metric"]["after"]
    return [
        ("verdict", "ok"),
        ("training", course),
        ("held out", f"{metric} {before:.4f} before, {after:.4f} after"),
        *(("note", text) for text in facts["notes"]),
        ("out", facts["out"]),
    ]
