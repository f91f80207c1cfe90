"""The flags that verbs share, each written once."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A built-in (simplecnn, resnet20, …) or file.py:factory.")]
Weights = Annotated[
    str | None, typer.Option(metavar="FILE", help="Trained weights: safetensors, or torch read with weights_only=True.")
]
Data = Annotated[str | None, typer.Option(metavar="D", help="digits, cifar10, npz:FILE, noise:SHAPE or file.py:factory.")]
Target = Annotated[str, typer.Option(metavar="T[@ISA]", help="The runtime, and whose instruction set if not this machine's.")]
RecipeName = Annotated[str, typer.Option("--recipe", metavar="R", help="w8a8, w8a8-linear-w4, or a YAML file.")]
PlanFile = Annotated[
    str | None, typer.Option("--plan", metavar="FILE", help="Carry out this plan.yaml instead of making one from a recipe.")
]
InputShape = Annotated[
    str | None, typer.Option(metavar="SHAPE", help="Like 1,3,32,32, batch first; several inputs separated by ';'.")
]
Calibration = Annotated[int, typer.Option(metavar="N", help="Samples to calibrate with.")]
Seed = Annotated[int, typer.Option(metavar="N", help="For data order, random weights and reference training.")]
Out = Annotated[str | None, typer.Option(metavar="DIR", help="The run folder; runs/MODEL-TARGET without it.")]
Json = Annotated[bool, typer.Option("--json", help="Print the facts as JSON on stdout.")]
Trust = Annotated[bool, typer.Option("--trust", help="Load weight files that can run code (.pt2).")]
RandomWeights = Annotated[bool, typer.Option("--random-weights", help="Untrained weights, for speed and size alone.")]
