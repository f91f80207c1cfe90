"""exactq plan: on which grid every value will live, and why; written to plan.yaml."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from exactq.cli.options import Data, InputShape, Model, RandomWeights, RecipeName, Seed, Target, Trust, Weights, writable
from exactq.errors import UsageError


def plan(
    model: Model,
    *,
    weights: Weights = None,
    data: Data = None,
    target: Target = "onnxruntime",
    recipe: RecipeName = None,
    input_shape: InputShape = None,
    seed: Seed = 0,
    out: Annotated[str, typer.Option(metavar="FILE", help="Where the plan is written.")] = "plan.yaml",
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    trust: Trust = False,
    random_weights: RandomWeights = False,
) -> None:
    """Write MODEL's plan: a decision and its reason for each value.

    Printed as a table, and written as YAML that `--plan` takes back, edited or not.
    """
    path = writable(Path(out))
    if path.exists() and not force:
        raise UsageError(f"{path} is there already, perhaps with your edits: choose another --out or add --force")
    from exactq import runs
    from exactq.cli.talking import job, print_table, talk
    from exactq.graphs.store import write
    from exactq.plans.document import to_yaml

    speak = talk()
    with job():
        made, _ = runs.plan(
            model,
            talk=speak,
            weights=weights,
            data=data,
            target=target,
            recipe=recipe,
            input_shape=input_shape,
            seed=seed,
            trust=trust,
            random_weights=random_weights,
        )
        write(path, to_yaml(made).encode())
        speak.say(f"written    {path}: edit it, and give it back with --plan {path}")
    rows = runs.plan_rows(made) if not sys.stdout.isatty() else runs.short_plan_rows(made)
    columns = ("value", "format", "grid", "observer", "reason") if not sys.stdout.isatty() else ("value", "codes", "reason")
    print_table(f"plan for {made.target}@{made.isa}, recipe {made.recipe}", columns, rows)
