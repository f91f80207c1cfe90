"""A file's graph beside the file itself in a runtime: a model that was misread is refused before anything is made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

import onnx
import torch
from torch import Tensor

from exactq.errors import ModelError, TargetError
from exactq.graphs.graph import Edit, Graph, op_name
from exactq.graphs.programs import float_trace
from exactq.sources.onnxfile.modules import OnnxModel
from exactq.sources.onnxfile.reading import OnnxFile

Open = Callable[[bytes, int], Callable[[Sequence[Tensor]], tuple[Tensor, ...]]]
"""A runtime: a file's bytes and a number of threads -> what runs it."""

SAMPLES = 4
"""How many samples are compared."""

TIMES, FLOOR = 16, 2.0**-16
"""What rounding may explain: 16 times the graph's own rounding error (float32 beside float64, the largest of the tensor), as a
library may add up in another order, and 2⁻¹⁶ of the tensor's largest magnitude, as exp, tanh and erf are polynomials there."""


def check_reading(model: OnnxModel, inputs: Sequence[Tensor], runtime: Open) -> None:
    """Nothing, or a `ModelError` that names the first value which the runtime computes differently on some of `inputs`."""
    graph, file = model.graph, model.file
    some = _samples(graph, file, inputs)
    try:
        ours, exact = float_trace(graph, some), float_trace(_doubled(graph), _double(some))
    except RuntimeError as error:
        raise ModelError(f"{file.path} cannot be computed: {(str(error).splitlines() or [''])[0]}") from error
    returned = list(graph.outputs)
    if _first(file.data, file, returned, ours, exact, some, runtime) is None:
        return
    inner = [graph.name(node) for node in graph.calls]
    known = set(file.outputs) | {o for node in file.nodes for o in node.outputs}
    shown = [name for name in inner if name in known]
    first = _first(_instrumented(file, shown), file, shown, ours, exact, some, runtime)
    name, off, bound = first or (returned[0], inf, 0.0)
    kind = op_name(graph.node(name))
    raise ModelError(
        f"{file.path}: the runtime computes another `{name}` ({kind}) than the graph that was made of it, off by {off:.3g} "
        f"where rounding explains {bound:.3g}: the file is not read right, so nothing is made of it. Please report it"
    )


def _samples(graph: Graph, file: OnnxFile, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """A few samples; whole batches, where the file has a size for them."""
    whole = max([place.sizes[0] or 1 for place in file.inputs if place.sizes], default=1)
    count = -(-SAMPLES // whole) * whole
    free = all(i.batch for i in graph.inputs)
    return tuple(torch.cat([x] * -(-count // x.shape[0]))[:count] if free and x.ndim else x for x in inputs)


def _first(
    data: bytes,
    file: OnnxFile,
    names: Sequence[str],
    ours: dict[str, Tensor],
    exact: dict[str, Tensor],
    inputs: Sequence[Tensor],
    runtime: Open,
) -> tuple[str, float, float] | None:
    """The first of `names`, the outputs of `data`, that differs by more than rounding explains; by how much; the bound."""
    try:
        theirs = _run(runtime(data, 1), file, inputs)
    except TargetError as error:
        raise ModelError(f"{file.path} cannot be run: {error}") from error
    for name, their in zip(names, theirs, strict=True):
        if name not in ours:  # an input that is handed on
            continue
        bound = _bound(ours[name], exact[name])
        off = _difference(their, ours[name])
        if not off <= bound:
            return name, off, bound
    return None


def _run(run: Callable[[Sequence[Tensor]], tuple[Tensor, ...]], file: OnnxFile, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """All samples at once, or as many at a time as the file takes."""
    sizes = {place.sizes[0] for place in file.inputs if place.sizes and place.sizes[0] is not None}
    if len(sizes) != 1:
        return run(inputs)
    (size,) = sizes
    parts = [run([x[n : n + size] for x in inputs]) for n in range(0, inputs[0].shape[0], size)]
    return tuple(torch.cat(column) if len(parts) > 1 else column[0] for column in zip(*parts, strict=True))


def _bound(ours: Tensor, exact: Tensor) -> float:
    if not ours.is_floating_point():
        return 0.0
    return TIMES * _difference(exact, ours) + FLOOR * float(torch.nan_to_num(exact, posinf=0.0, neginf=0.0).abs().max())


def _difference(a: Tensor, b: Tensor) -> float:
    """The largest difference; infinite where the sizes differ, or one is not finite and the other is something else."""
    if a.shape != b.shape:
        return inf
    same = (a == b) | (torch.isnan(a) & torch.isnan(b))
    differs = (a.double() - b.double())[~same].abs()
    return float(torch.nan_to_num(differs, nan=inf).max()) if differs.numel() else 0.0


def _double(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(x.double() if x.is_floating_point() else x for x in inputs)


def _doubled(graph: Graph) -> Graph:
    """The same graph with constants in float64."""
    edit = Edit(graph)
    for node in edit:
        if node.op == "get_attr" and edit.tensor(node).is_floating_point():
            edit.set_constant(node, edit.tensor(node).double())
        elif node.kwargs.get("dtype") == torch.float32:
            node.kwargs = {**node.kwargs, "dtype": torch.float64}
    return edit.freeze()


def _instrumented(file: OnnxFile, names: Sequence[str]) -> bytes:
    """The file with these values as its outputs."""
    proto = onnx.ModelProto.FromString(file.data)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return proto.SerializeToString()
