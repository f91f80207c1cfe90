"""exactq export: a run folder's model as the target's own file."""

from __future__ import annotations

from typing import Annotated

import typer


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")],
    out: Annotated[str, typer.Option(metavar="FILE", help="The file to write; its ending is the target's.")],
) -> None:
    """Write the quantized model of RUN as the target's own file."""
    from exactq.quantized import load

    print(load(run).export(out))
