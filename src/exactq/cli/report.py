"""exactq report: a run folder as one page, and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exactq.cli.options import Json


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")],
    *,
    as_json: Json = False,
) -> None:
    """Write RUN's report anew: report.html, the same facts as report.json, and node data for Model Explorer.

    `exactq run` and `exactq quantize` write it too.
    """
    from exactq import reports
    from exactq.cli.talking import print_json

    facts = reports.write(run)
    if as_json:
        print_json(facts)
    else:
        typer.echo(Path(run, reports.HTML))
