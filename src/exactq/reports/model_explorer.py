"""A run as node data for Google's Model Explorer: the value of each node, and the colours of the values.

The format is that of `ai-edge-model-explorer` (`node_data_builder.GraphNodeData`): `results` by node id or by name of an output
tensor, `thresholds` as upper bounds in rising order. A file without graph ids is applied to the graph that is open.
For ONNX the adapter `model-explorer-onnx` takes the node's name as its id.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx

from exactq.graphs.qdq import CODES, REAL
from exactq.reports.colours import LEVELS
from exactq.reports.facts import Facts

FLOAT = "/float"
"""What the ONNX file calls the reals in front of an output's codes."""


def node_data(facts: Facts, nodes: Iterable[str]) -> dict[str, Any]:
    """The signal-to-noise ratio in dB of each node; `nodes` are the ids in the file, those without a ratio are left out."""
    known = {value: layer.sqnr_db for layer in facts.layers for value in layer.values if layer.sqnr_db is not None}
    results = {}
    for node in nodes:
        base = node.removesuffix(CODES).removesuffix(REAL).removesuffix(FLOAT)
        if base in known:
            results[node] = {"value": round(known[base], 2)}
    rising = sorted(LEVELS, key=lambda level: level.below)
    return {
        "results": results,
        "thresholds": [{"value": min(level.below, 1000.0), "bgColor": level.light} for level in rising],
    }


def nodes_of(artifact: bytes, suffix: str, facts: Facts) -> list[str]:
    """The node ids of an artifact: names of ONNX nodes; of other files, which go by tensors, all names of values."""
    if suffix == ".onnx":
        return [node.name for node in onnx.load_model_from_string(artifact).graph.node]
    return [f"{value}{end}" for layer in facts.layers for value in layer.values for end in ("", CODES, REAL)]
