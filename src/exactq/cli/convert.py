"""exactq convert: a model that torch.ao prepared or quantized, deployed on the grids that it really has."""

from __future__ import annotations

from typing import Annotated

import typer

from exactq.cli.options import Data, InputShape, Json, Out, Seed


def convert(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="file.py:factory, which returns the prepared or quantized module.")
    ],
    *,
    data: Data = None,
    input_shape: InputShape = None,
    target: Annotated[
        str | None, typer.Option(metavar="T[@ISA]", help="The runtime; PyTorch's engine as the factory leaves it without it.")
    ] = None,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Deploy a prepared MODEL on the grids that its fake quantization really used.

    PyTorch's own `convert` asks observers for the grids instead, and outputs jump; what would have jumped is told. A MODEL that
    is converted already keeps its codes. The folder is a run's: `verify`, `explain`, `export` and `bench` take it. Exit code 1
    if outputs of the deployed file differ from MODEL's own.
    """
    from exactq import runs
    from exactq.cli.talking import job, print_json, print_lines, print_table, talk
    from exactq.runs.conversion import convert as convert_model

    speak = talk()
    with job():
        plan, facts = convert_model(model, target=target, data=data, input_shape=input_shape, seed=seed, out=out, talk=speak)
    outputs, verdict = facts["outputs"], facts["verify"]
    if as_json:
        print_json(facts)
    else:
        rows = runs.short_plan_rows(plan)
        print_table(f"{facts['kind']} in {facts['mode']} mode, for {facts['target']}", ("value", "codes", "reason"), rows)
        print_lines(
            [
                *(("jump", jump["told"]) for jump in facts["jumps"]),
                *(("note", note) for note in facts["notes"]),
                *(("unverified", text) for text in verdict["unverified"]),
                ("outputs", f"{outputs['differ']:,} of {outputs['elements']:,} differ from the {facts['kind']} model's own"),
                ("integers", f"{verdict['mismatches']:,} of {verdict['elements']:,} differ from the emulator's"),
                ("written", facts["out"]),
            ]
        )
    if outputs["differ"] or verdict["mismatches"]:
        raise typer.Exit(1)
