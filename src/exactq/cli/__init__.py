"""The shell door: one file a verb. Result on stdout, talk on stderr.

Exit code 0 = yes, 1 = the honest answer is no, 2 = misuse or bad input, 3 = a bug of exactq, 130 = interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from io import TextIOWrapper
from typing import Any, NoReturn

import typer

from exactq.cli.bench import bench
from exactq.cli.convert import convert
from exactq.cli.diff import diff
from exactq.cli.explain import explain
from exactq.cli.export import export
from exactq.cli.plan import plan
from exactq.cli.quantize import quantize
from exactq.cli.report import report
from exactq.cli.run import run
from exactq.cli.targets import targets
from exactq.cli.train import train
from exactq.cli.verify import verify
from exactq.errors import ExactqError, Stopped

VERBS: tuple[Callable[..., Any], ...] = (
    run,
    plan,
    quantize,
    train,
    export,
    verify,
    explain,
    diff,
    convert,
    bench,
    report,
    targets,
)

NO, MISUSE, BUG, INTERRUPTED = 1, 2, 3, 130
"""The exit codes besides 0."""

app = typer.Typer(
    name="exactq",
    help="Quantize a PyTorch model for the runtime it will run on, and know every integer that runtime will produce.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)

_Misuse: type[Any] = typer.BadParameter.__mro__[2]
"""Click's ClickException, which some versions of typer carry within themselves."""


def _version(*, wanted: bool) -> None:
    if wanted:
        from exactq import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _exactq(
    version: bool = typer.Option(  # noqa: FBT001 (typer's own form of a flag)
        False,
        "--version",
        callback=lambda value: _version(wanted=value),
        is_eager=True,
        help="Print the version and stop.",
    ),
) -> None:
    pass


for _verb in VERBS:
    app.command(_verb.__name__)(_verb)


class _Terminated(BaseException):
    """SIGTERM; not a SystemExit, which a user's own code may raise too."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line, the process's own if none is given, and exit; what goes wrong is one line on stderr.

    `EXACTQ_TRACEBACK=1` shows the traceback before that line.
    """
    # Read when torch is imported: its threads then sleep while they wait, instead of fighting other work for the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a sign is no reason to fail
    _end_on_terminate()
    try:
        code = app(args=None if arguments is None else list(arguments), standalone_mode=False)
        sys.stdout.flush()
    except _Terminated:
        sys.exit(128 + signal.SIGTERM)
    except (KeyboardInterrupt, typer.Abort) as error:
        _end(_with_notes("interrupted", error, "nothing was left behind"), INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on: no complaint at exit either
        sys.exit(128 + signal.SIGPIPE)
    except _Misuse as error:
        _misuse(error)
    except Stopped as error:
        _end(_with_notes(str(error), error), NO)
    except ExactqError as error:
        _end(_with_notes(str(error), error), MISUSE)
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        _end(_with_notes(f"{error.strerror or error}{place}", error, "what was begun is removed again"), MISUSE)
    except MemoryError as error:
        _end(f"out of memory ({error or 'asked for too much'}): use a smaller model, batch or input shape", MISUSE)
    except Exception as error:
        if "can't allocate memory" in str(error):
            _end("out of memory: use a smaller model or input shape", MISUSE)
        said = str(error).strip().splitlines()
        _end(
            f"a bug of exactq, not yours: {type(error).__name__}: {said[0] if said else 'no message'} "
            "(EXACTQ_TRACEBACK=1 shows where; please report it)",
            BUG,
        )
    sys.exit(code if isinstance(code, int) else 0)


def _end_on_terminate() -> None:
    """Let SIGTERM unwind as Ctrl-C does, so that staging folders go; only a main thread may set this."""

    def end(number: int, frame: object) -> None:
        raise _Terminated

    with suppress(ValueError):
        signal.signal(signal.SIGTERM, end)


def _misuse(error: Any) -> NoReturn:
    """End with click's complaint in one line; called without any verb, that is the help."""
    message = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(message, err=True)
        sys.exit(MISUSE)
    context = getattr(error, "ctx", None)
    if (name := getattr(error, "option_name", None)) is not None and context is not None:
        known = [option for p in context.command.params for option in p.opts if option.startswith("--")]
        if name not in known:
            close = get_close_matches(name, known, n=1)
            guess = f"did you mean {close[0]}? " if close else ""
            message = f"no such option {name}: {guess}"
    help_of = f"{context.command_path} --help" if context is not None else "exactq --help"
    _end(f"{message.strip().rstrip('.')}{'' if message.strip().endswith('?') else ';'} see `{help_of}`", MISUSE)


def _with_notes(message: str, error: BaseException, otherwise: str = "") -> str:
    """The message and what was noted on the way up, such as what is kept; `otherwise` where nothing was."""
    return "; ".join(part for part in (message, *(getattr(error, "__notes__", None) or (otherwise,))) if part)


def _end(message: str, code: int) -> NoReturn:
    if os.environ.get("EXACTQ_TRACEBACK"):
        import traceback

        traceback.print_exc()
    typer.echo(f"exactq: {' '.join(message.split())}", err=True)
    sys.exit(code)
