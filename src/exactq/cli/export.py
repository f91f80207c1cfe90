"""exactq export: a run folder's model as the target's own file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exactq.cli.options import writable


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")],
    *,
    out: Annotated[str, typer.Option(metavar="FILE", help="The file to write; its ending is the target's.")],
) -> None:
    """Write RUN's quantized model as the target's own file.

    Its path is printed.
    """
    path = writable(Path(out))
    from exactq import runs

    typer.echo(runs.open_model(Path(run)).export(path))
