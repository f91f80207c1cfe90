"""exactq explain: one integer in full, or how every bias is quantized."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from exactq.cli.options import Data, Json, Seed, whole
from exactq.errors import UsageError


def _index(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--at is '{text}': whole numbers with commas between are needed, like 0,3,5,5") from None


def explain(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or a .safetensors file of PyTorch's engines.")],
    node: Annotated[str | None, typer.Argument(metavar="[NODE]", help="A value of the plan, such as layer1.0.conv1.")] = None,
    *,
    at: Annotated[str | None, typer.Option(metavar="INDEX", help="Which element, like 0,3,5,5: the batch first.")] = None,
    bias: Annotated[bool, typer.Option("--bias", help="How the bias of every layer, or of NODE, is held.")] = False,
    data: Data = None,
    input: Annotated[int, typer.Option(metavar="K", parser=whole("--input"), help="Which sample of the evaluation data.")] = 0,
    terms: Annotated[
        int, typer.Option(metavar="N", parser=whole("--terms"), help="How many terms of a sum are shown, the largest.")
    ] = 8,
    isa: Annotated[str | None, typer.Option(metavar="ISA", help="As another measured instruction set has it.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Show how the integer of NODE at INDEX comes about, step by step.

    It is recomputed in plain integers from what NODE's kernel reads, and compared with the emulator. With --bias: of each layer
    the float bias, its int32 code, what rounding it costs, and how much of int32 is left; of engines that keep biases in float,
    what int32 biases would cost.
    """
    from exactq.cli.talking import job, print_json, talk
    from exactq.runs.explanation import explain_run, explain_run_biases

    if bias and at is not None:
        raise UsageError("--at asks for one element and --bias for the biases: give one of them")
    if not bias and (node is None or at is None):
        raise UsageError("explain what? Name a value and an index, like `layer1.0.conv1 --at 0,3,5,5`, or ask for --bias")
    with job():
        if node is None or at is None:
            found: Any = explain_run_biases(run, node, isa=isa)
        else:
            found = explain_run(run, node, _index(at), data=data, number=input, isa=isa, terms=terms, seed=seed, talk=talk())
    if as_json:
        print_json(found.to_json())
    else:
        typer.echo(str(found))
