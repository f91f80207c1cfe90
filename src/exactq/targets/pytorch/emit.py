"""The file: one safetensors file that holds a Q/DQ graph, its weights as int8 codes, and the graph's JSON in the header.

PyTorch has no file of its own for these engines that loads without unpickling. The header's metadata has one entry, `exactq`:
JSON with `engine`, and `graph` as `graphs.store` writes it. The same graph gives the same bytes: of two entries safetensors
would write any one first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import safetensors
import safetensors.torch

from exactq.errors import ModelError, TargetError
from exactq.graphs import store
from exactq.graphs.graph import Edit, Graph
from exactq.graphs.qdq import CODES, read_quantize

ENTRY, ENGINE, GRAPH = "exactq", "engine", "graph"


def emit(engine: str, graph: Graph) -> bytes:
    """The file of a float graph or a Q/DQ graph for an engine."""
    text, data = store.dumps(fold(graph))
    tensors = safetensors.torch.load(data)
    told = {ENGINE: engine, GRAPH: json.loads(text)}
    return safetensors.torch.save(tensors, {ENTRY: json.dumps(told, ensure_ascii=False, separators=(",", ":"))})


def fold(graph: Graph) -> Graph:
    """The graph with each quantized constant stored as its codes, in their format's dtype."""
    edit = Edit(graph)
    nodes = {edit.value(n): n for n in edit}
    for node in graph.calls:
        q = read_quantize(graph, node)
        if q is not None and q.source.op == "get_attr":
            mine, name = nodes[graph.name(node)], graph.name(q.source)
            codes, value = nodes[name], q.grid.encode(edit.tensor(nodes[name]))
            if len(q.source.users) == 1:
                edit.set_constant(codes, value)
            else:
                with edit.graph.inserting_before(mine):
                    codes = edit.constant(f"{name}{CODES}", value)
            mine.replace_all_uses_with(codes)
    return edit.freeze()


@dataclass(frozen=True)
class Read:
    """What a file holds."""

    engine: str
    graph: Graph


def read(data: bytes) -> Read:
    """The engine and graph of a file; nothing in it is executed. Raises `TargetError` for anything else."""
    try:
        tensors = safetensors.torch.load(data)
        size = int.from_bytes(data[:8], "little")
        told = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][ENTRY])
        return Read(told[ENGINE], store.loads(json.dumps(told[GRAPH]).encode(), safetensors.torch.save(tensors)))
    except KeyError as error:
        raise TargetError(f"the file is not one of exactq's for PyTorch's engines: its header lacks {error}") from error
    except (safetensors.SafetensorError, ValueError, TypeError, AttributeError, ModelError) as error:
        raise TargetError(f"the file is not one of exactq's for PyTorch's engines: {error}") from error


def graph_for(engine: str, data: bytes) -> Graph:
    """The graph of a file that was made for an engine. Raises `TargetError` for any other file."""
    found = read(data)
    if found.engine != engine:
        raise TargetError(f"the file was made for {found.engine}, not for {engine}")
    return found.graph
