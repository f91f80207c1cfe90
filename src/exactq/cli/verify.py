"""exactq verify: the real runtime beside the emulator, integer by integer."""

from __future__ import annotations

from typing import Annotated

import typer

from exactq.cli.options import Data, Json, Seed


def verify(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")],
    data: Data = None,
    inputs: Annotated[int, typer.Option(metavar="N", help="How many inputs.")] = 64,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Compare every integer of RUN's artifact on this machine's runtime with the predicted one.

    Exit code 1 if any differs or nothing could be compared.
    """
    from exactq import runs
    from exactq.cli.talking import print_json, print_table, talk

    verdict = runs.verify_run(run, data=data, inputs=inputs, seed=seed, talk=talk())
    if as_json:
        print_json(verdict.to_json())
    else:
        rows = [(t.name, f"{t.elements:,}", t.mismatches, t.max_lsb) for t in (*verdict.tensors, *verdict.outputs)]
        print_table("integers", ("tensor", "elements", "mismatches", "max LSB"), rows)
        for text in verdict.unverified:
            print(f"unverified {text}")
        word = "equal" if verdict.equal else "DIFFERS"
        print(
            f"{word}: {verdict.mismatches:,} of {verdict.elements:,} integers differ on {verdict.inputs} inputs "
            f"({verdict.runtime} {verdict.version}, {verdict.isa})"
        )
    if not verdict.equal:
        raise typer.Exit(1)
