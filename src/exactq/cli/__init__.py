"""The shell door: one file a verb. Result on stdout, talk on stderr; exit 0 = yes, 1 = the honest answer is no, 2 = misuse."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer

from exactq.cli.export import export
from exactq.cli.plan import plan
from exactq.cli.quantize import quantize
from exactq.cli.run import run
from exactq.cli.targets import targets
from exactq.cli.verify import verify
from exactq.errors import ExactqError

VERBS: tuple[Callable[..., Any], ...] = (run, plan, quantize, export, verify, targets)

app = typer.Typer(
    name="exactq",
    help="Quantize a PyTorch model for the runtime it will run on, and know every integer that runtime will produce.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _version(wanted: bool) -> None:
    if wanted:
        from exactq import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _exactq(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version and stop."),
) -> None:
    pass


for _verb in VERBS:
    app.command(_verb.__name__)(_verb)


def main() -> None:
    """Run the command line; a refusal is one line on stderr and exit code 2, never a traceback."""
    try:
        app()
    except ExactqError as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except KeyboardInterrupt:
        sys.exit(130)


def _refuse(message: str) -> None:
    print(f"exactq: {message}", file=sys.stderr)
    sys.exit(2)
