"""exactq verify: the real runtime beside the emulator, integer by integer."""

from __future__ import annotations

from typing import Annotated

import typer

from exactq.cli.options import Data, Json, Seed, whole


def verify(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or a .safetensors file of PyTorch's engines.")],
    *,
    data: Data = None,
    inputs: Annotated[int, typer.Option(metavar="N", parser=whole("--inputs"), help="How many inputs.")] = 64,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Compare every integer of RUN with the predicted one.

    RUN's artifact runs on this machine's runtime, beside the emulator. Exit code 1 if any differs or nothing could be compared.
    """
    from exactq import runs
    from exactq.cli.talking import job, print_json, print_lines, print_table, talk

    with job():
        verdict = runs.verify_run(run, data=data, inputs=inputs, seed=seed, talk=talk())
    if as_json:
        print_json(verdict.to_json())
    else:
        compared = [*((t.name, t) for t in verdict.tensors), *((f"{t.name} (output, as real)", t) for t in verdict.outputs)]
        rows = [(name, t.elements, t.mismatches, t.max_lsb) for name, t in compared]
        print_table("integers", ("tensor", "elements", "mismatches", "max LSB"), rows)
        print_lines(
            [
                *(("unverified", text) for text in verdict.unverified),
                ("verdict", "ok" if verdict.equal else "differs" if verdict.elements else "nothing could be compared"),
                ("integers", f"{verdict.mismatches:,} of {verdict.elements:,} differ on {verdict.inputs} inputs"),
                ("runtime", f"{verdict.runtime} {verdict.version}, {verdict.isa}"),
            ]
        )
    if not verdict.equal:
        raise typer.Exit(1)
