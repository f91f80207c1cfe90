"""A graph as a model: what comes from a file has no Python code to trace, and its names are there already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from exactq.errors import DataError
from exactq.graphs.graph import Graph
from exactq.graphs.programs import program
from exactq.traces import walk


class Captured(nn.Module):
    """A model that is a graph: `capture` gives that graph back, names and all."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.constants = graph.module  # its buffers are the model's
        self._program = program(graph)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The graph's outputs; a single one as itself."""
        outputs = walk(self._program, inputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def taking(self, inputs: Sequence[Tensor], *, batch: bool) -> Graph:
        """The graph, with a fixed batch unless `batch`; raises `DataError` where it does not take such inputs."""
        wanted = self.graph.inputs
        fits = len(inputs) == len(wanted) and all(
            x.dtype == i.dtype and x.ndim == len(i.shape) and x.shape[i.batch :] == i.shape[i.batch :]
            for x, i in zip(inputs, wanted, strict=False)
        )
        if not fits:
            given = ", ".join(f"{_kind(x.dtype)} {tuple(x.shape)}" for x in inputs)
            takes = ", ".join(f"`{i.name}` {_kind(i.dtype)} {i.shape}" for i in wanted)
            raise DataError(f"the model refuses inputs {given}: it takes {takes}")
        if batch or not any(i.batch for i in wanted):
            return self.graph
        fixed = tuple(replace(i, shape=tuple(x.shape), batch=False) for i, x in zip(wanted, inputs, strict=True))
        return replace(self.graph, inputs=fixed)


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
