"""A file's graph as an `nn.Module`, for the sizes of the data and with a free batch where that is proven."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from exactq.errors import DataError, ModelError
from exactq.graphs.graph import Graph
from exactq.sources.captured import Captured
from exactq.sources.onnxfile.batch import free_batch
from exactq.sources.onnxfile.building import build
from exactq.sources.onnxfile.reading import OnnxFile


class OnnxModel(Captured):
    """The graph of `file`; `note` says why its batch is fixed, or is empty."""

    def __init__(self, file: OnnxFile, graph: Graph, note: str) -> None:
        super().__init__(graph)
        self.file, self.note = file, note
        self.eval()


def model(file: OnnxFile, shapes: Sequence[tuple[int, ...]] | None = None) -> OnnxModel:
    """The module of a file; `shapes`, one an input and without the batch, say what the file leaves free.

    A batch that the file fixes becomes free where its operators provably keep samples apart; one that it leaves free has to
    give the same calls and constants for two numbers of samples. Raises `ModelError` for what
    cannot be read, `DataError` where sizes are missing or there are more or fewer `shapes` than inputs.
    """
    graph = build(file, _sizes(file, shapes, batch=2))
    freed = _freed(file, graph)
    if any(place.sizes[:1] == (None,) for place in file.inputs):
        other = _freed(file, build(file, _sizes(file, shapes, batch=3)))
        if isinstance(freed, Graph) and not (isinstance(other, Graph) and _same(freed, other)):
            freed = "it computes with the number of samples"
        if not isinstance(freed, Graph):
            graph = build(file, _sizes(file, shapes, batch=1))
    if isinstance(freed, Graph):
        return OnnxModel(file, freed, "")
    return OnnxModel(file, graph, f"only batches of {_batch(graph)}: {freed}")


def _freed(file: OnnxFile, graph: Graph) -> Graph | str:
    try:
        return free_batch(graph)
    except ModelError as error:
        raise ModelError(f"{file.path}: {error}") from error


def _same(a: Graph, b: Graph) -> bool:
    """Whether two graphs are one for their calls and constants, whatever sizes they were made for."""
    left, right = a.constants, b.constants
    return (
        a.module.code == b.module.code
        and left.keys() == right.keys()
        and all(torch.equal(value, right[name]) for name, value in left.items())
    )


def _batch(graph: Graph) -> str:
    return " and ".join(str(size) for size in sorted({i.shape[0] for i in graph.inputs if i.shape})) or "no"


def _sizes(file: OnnxFile, shapes: Sequence[tuple[int, ...]] | None, batch: int) -> list[tuple[int, ...]]:
    if shapes is not None and len(shapes) != len(file.inputs):
        names = ", ".join(place.name for place in file.inputs)
        raise DataError(f"{file.path} takes {len(file.inputs)} inputs ({names}), and {len(shapes)} are given")
    found = []
    for n, place in enumerate(file.inputs):
        given = None if shapes is None else (batch, *shapes[n])
        if given is not None and len(given) != len(place.sizes):
            raise DataError(f"{file.path}: the input `{place.name}` has {len(place.sizes)} dimensions, the data {len(given)}")
        if None in place.sizes[1:] and given is None:
            raise ModelError(f"{file.path} leaves sizes of its input `{place.name}` free: the data or --input-shape says them")
        known = given or (batch, *[0] * (len(place.sizes) - 1))
        found.append(tuple(size if size is not None else known[d] for d, size in enumerate(place.sizes)))
    return found
