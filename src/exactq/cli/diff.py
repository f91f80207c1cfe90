"""exactq diff: where two executions of a model part, and why."""

from __future__ import annotations

from typing import Annotated

import typer

from exactq.cli.options import Data, InputShape, Json, Seed, whole


def diff(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, a .safetensors file, or file.py:factory.")],
    other: Annotated[str | None, typer.Argument(metavar="[OTHER]", help="Another of the same model.")] = None,
    *,
    ways: Annotated[
        list[str] | None,
        typer.Option("--as", metavar="WAY", help="Twice, a way for each side: float, qdq, emulator[@ISA] or runtime."),
    ] = None,
    data: Data = None,
    input_shape: InputShape = None,
    inputs: Annotated[int, typer.Option(metavar="N", parser=whole("--inputs"), help="How many inputs.")] = 64,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Say where two executions part, how the difference grows, and why.

    One RUN is compared with itself: PyTorch's float operators on its grids (qdq) beside its runtime, or as --as says.
    Two are compared by their emulators; a module of a Python file runs itself, be it float, prepared or converted by
    torch.ao. Causes are found by experiment: parts of the arithmetic are exchanged one by one.
    Exit code 1 if anything differs.
    """
    from exactq.cli.talking import job, print_json, talk
    from exactq.runs.difference import diff_runs

    with job():
        models = [run] if other is None else [run, other]
        found = diff_runs(models, ways or (), data=data, input_shape=input_shape, inputs=inputs, seed=seed, talk=talk())
    if as_json:
        print_json(found.to_json())
    else:
        typer.echo(str(found))
    if not found.equal:
        raise typer.Exit(1)
