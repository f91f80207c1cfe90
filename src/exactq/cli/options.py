"""The flags that verbs share, each written once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from exactq.errors import UsageError


def whole(flag: str) -> Callable[[str], int]:
    """What reads the whole number of `flag`, or says which text is none."""

    def read(text: str) -> int:
        try:
            return int(text)
        except ValueError:
            raise UsageError(f"{flag} is '{text}': a whole number is needed") from None

    return read


def wholes(flag: str, text: str) -> tuple[int, ...]:
    """The whole numbers of `flag`, separated by commas; raises `UsageError` for text that is none."""
    return tuple(map(whole(flag), text.split(",")))


def number(flag: str) -> Callable[[str], float]:
    """What reads the number of `flag`, or says which text is none."""

    def read(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            raise UsageError(f"{flag} is '{text}': a number is needed, like 0.01") from None

    return read


def writable(path: Path) -> Path:
    """The path, if a file can be put there; raises `UsageError` before any work is done for it."""
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder: name a file")
    if not path.parent.is_dir():
        raise UsageError(f"--out {path}: there is no folder {path.parent}, make it first")
    return path


_MODEL = typer.Argument(
    metavar="MODEL", help="A built-in (simplecnn, resnet20, …), file.py:factory, file.onnx, timm:NAME or torchvision:NAME."
)
Model = Annotated[str, _MODEL]
OptionalModel = Annotated[str | None, _MODEL]
Weights = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Trained weights: safetensors, or a torch checkpoint, of which only tensors are read."),
]
Data = Annotated[
    str | None,
    typer.Option(metavar="D", help="digits, cifar10[:DIR], imagefolder:DIR, npz:FILE, noise:SHAPE or file.py:factory."),
]
Target = Annotated[str, typer.Option(metavar="T[@ISA]", help="The runtime, and whose instruction set if not this machine's.")]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", metavar="R", help="w8a8 (if none is given), w8a8-linear-w4, portable, or a YAML file.")
]
PlanFile = Annotated[
    str | None, typer.Option("--plan", metavar="FILE", help="Carry out this plan.yaml instead of making one from a recipe.")
]
InputShape = Annotated[
    str | None, typer.Option(metavar="SHAPE", help="Like 1,3,32,32, batch first; several inputs separated by ';'.")
]
Calibration = Annotated[
    int, typer.Option(metavar="N", parser=whole("--calibration"), help="How many samples to calibrate with, at most.")
]
Seed = Annotated[
    int, typer.Option(metavar="N", parser=whole("--seed"), help="For data order, random weights and reference training.")
]
Method = Annotated[
    str,
    typer.Option(metavar="WAY", help="How to train through rounding: straight_through, lsq, exact or exact_lsq."),
]
Epochs = Annotated[
    int | None, typer.Option(metavar="N", parser=whole("--epochs"), help="How many epochs at most; by the data without.")
]
TrainSamples = Annotated[
    int, typer.Option(metavar="N", parser=whole("--train-samples"), help="How many samples to fine-tune on, at most.")
]
ObjectiveName = Annotated[
    str | None, typer.Option(metavar="O", help="What to fine-tune towards: distillation, matching or labels.")
]
Out = Annotated[str | None, typer.Option(metavar="DIR", help="The run folder; runs/MODEL-TARGET without it.")]
Json = Annotated[bool, typer.Option("--json", help="Print the facts as one JSON document on stdout.")]
Trust = Annotated[bool, typer.Option("--trust", help="Load weight files that can run code (.pt2).")]
RandomWeights = Annotated[bool, typer.Option("--random-weights", help="Untrained weights, for speed and size alone.")]
