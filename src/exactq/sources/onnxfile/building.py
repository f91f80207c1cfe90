"""The nodes of a file as a graph for inputs of given sizes: values keep the names that they have in the file."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch
from torch import fx

from exactq.errors import ModelError
from exactq.graphs.graph import Graph, Input, unique
from exactq.sources.onnxfile.arguments import Read
from exactq.sources.onnxfile.drafts import COMPUTED, Draft, Value
from exactq.sources.onnxfile.movement import MOVEMENT
from exactq.sources.onnxfile.operators import LAYERS
from exactq.sources.onnxfile.reading import Node, OnnxFile, load

OPERATORS: dict[str, Read] = LAYERS | MOVEMENT
"""Every ONNX operator that is read."""

LONGEST = 200
"""Characters of a value's name."""


def read(path: Path) -> OnnxFile:
    """The file at `path`, checked; raises `ModelError` with the file, the node and the reason."""
    return load(path, OPERATORS)


def build(file: OnnxFile, shapes: Sequence[tuple[int, ...]]) -> Graph:
    """The graph of `file` for inputs of these shapes, batch included; what depends on constants alone is computed.

    Raises `ModelError` with the node that cannot be read and the reason.
    """
    names = _valid_names(file)
    draft = Draft(file.opset, set(names.values()))
    values: dict[str, Value] = {}
    for name, tensor in file.constants.items():
        values[name] = tensor
        draft.name(tensor, names[name])
    for place, shape in zip(file.inputs, shapes, strict=True):
        if prod(shape) > COMPUTED:
            raise ModelError(f"{file.path}: the input `{place.name}` {list(shape)} has more than {COMPUTED:,} elements")
        values[place.name] = draft.place(names[place.name], torch.empty(shape, dtype=place.dtype, device="meta"))
    for node in file.nodes:
        made = _read(draft, node, values, names)
        for output, value in zip(node.outputs, made, strict=False):
            if output:
                values[output] = value
                draft.name(value, names[output])
        draft.name_the_rest()
    returned: list[tuple[str, fx.Node]] = []
    for name in file.outputs:
        found = values.get(name)
        if not isinstance(found, fx.Node):
            raise ModelError(f"{file.path}: the output `{name}` is not computed from the inputs: leave it out")
        returned.append((names[name], found))
    inputs = [
        Input(names[place.name], tuple(shape), place.dtype, batch=False)
        for place, shape in zip(file.inputs, shapes, strict=True)
    ]
    return draft.freeze(returned, inputs)


def _read(draft: Draft, node: Node, values: dict[str, Value], names: dict[str, str]) -> tuple[Value, ...]:
    draft.result = next((names[o] for o in node.outputs if o), "")
    if unread := [name for name in node.inputs if name and name not in values]:
        raise ModelError(f"{node.place} reads `{unread[0]}`, a second result that is not read from the file")
    inputs = [values[name] if name else None for name in node.inputs]
    while inputs and inputs[-1] is None:
        inputs.pop()
    try:
        with torch.no_grad():
            made = OPERATORS[node.kind](draft, node, *inputs)
    except ModelError as error:
        raise ModelError(f"{node.place}: {error}") from error
    except Exception as error:  # whatever torch says of sizes, dtypes and numbers that do not go together
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ModelError(f"{node.place} does not fit its inputs: {reason}") from error
    return made if isinstance(made, tuple) else (made,)


def _valid_names(file: OnnxFile) -> dict[str, str]:
    """The file's name of each value -> the graph's: the same, but for what is not printable or endless."""
    every = [*(p.name for p in file.inputs), *file.constants, *(o for node in file.nodes for o in node.outputs if o)]
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in every:
        plain = "".join(c if c.isprintable() else "_" for c in name)[:LONGEST] or "value"
        found[name] = unique(plain, taken)
        taken.add(found[name])
    return found
