"""Batches -> the state of an observer for every value that has a grid of its own; one float walk a batch, nothing kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from exactq.calibration import Observer, observer_named
from exactq.errors import DataError
from exactq.graphs.graph import Graph
from exactq.graphs.programs import program
from exactq.plans.plan import Own, Plan
from exactq.traces import Step, walk

States = dict[str, Any]
"""Value name, or `value@reader` for an edge, -> what its observer has seen."""


def observers(plan: Plan, graph: Graph) -> dict[str, Observer]:
    """The observer of each activation and edge that has a grid of its own; raises `UsageError` for an unknown one."""
    return {name: observer for watched in _watched(plan, graph).values() for name, observer in watched.items()}


def _watched(plan: Plan, graph: Graph) -> dict[str, dict[str, Observer]]:
    """Value -> the observers that watch it, by the name of their state."""
    constants = graph.constants
    found: dict[str, dict[str, Observer]] = {}
    lines = [(name, name, slot) for name, slot in plan.slots.items()]
    lines += [(edge.value, str(edge), slot) for edge, slot in plan.edges.items()]
    for value, name, slot in lines:
        if isinstance(slot, Own) and value not in constants:
            found.setdefault(value, {})[name] = observer_named(slot.observer)
    return found


def calibrate(
    graph: Graph,
    plan: Plan,
    batches: Iterable[Sequence[Tensor]],
    progress: Callable[[int], None] | None = None,
) -> States:
    """What every observer of `plan` has seen after all batches, each a tuple of the graph's inputs.

    Memory does not grow with the number of batches; `progress` is told each batch's size. Raises `DataError` for no sample at
    all, for shapes the model refuses, and for values that are not finite, naming the value of the graph.
    """
    watched = _watched(plan, graph)
    states = {name: observer.start() for name, observer in observers(plan, graph).items()}
    steps = program(graph)
    inputs = tuple(i.name for i in graph.inputs)
    seen = 0

    def see(name: str, value: Tensor) -> None:
        for key, observer in watched.get(name, {}).items():
            try:
                states[key] = observer.see(states[key], value)
            except DataError as error:
                raise DataError(f"calibration, value `{name}`: {error}") from error

    def see_step(step: Step, value: Tensor) -> None:
        see(step.name, value)

    for batch in batches:
        size = check_inputs(graph, batch)
        if not size:
            continue
        with torch.no_grad():
            for name, value in zip(inputs, batch, strict=True):
                see(name, value)
            walk(steps, batch, see_step)
        seen += size
        if progress is not None:
            progress(size)
    if not seen:
        raise DataError("the calibration data are empty: a range needs at least one sample")
    return states


def merge(plan: Plan, graph: Graph, a: Mapping[str, Any], b: Mapping[str, Any]) -> States:
    """The states of two calibrations of one plan on different data, as if one had seen both."""
    return {name: observer.merge(a[name], b[name]) for name, observer in observers(plan, graph).items()}


def check_inputs(graph: Graph, batch: Sequence[Tensor]) -> int:
    """The number of samples in a batch; `DataError` where it does not fit the graph's inputs in number, shape or dtype.

    And where a value is not finite, or two inputs have different numbers of samples. A graph of fixed size has one sample.
    """
    if len(batch) != len(graph.inputs):
        names = ", ".join(i.name for i in graph.inputs)
        raise DataError(f"a batch has {len(batch)} inputs, the model takes {len(graph.inputs)}: {names}")
    sizes: dict[str, int] = {}
    for spec, value in zip(graph.inputs, batch, strict=True):
        if not isinstance(value, Tensor):
            raise DataError(f"input `{spec.name}` is of type {type(value).__name__}; the model takes a tensor of {spec.dtype}")
        wanted = ("batch", *spec.shape[1:]) if spec.batch else spec.shape
        fixed = slice(1, None) if spec.batch else slice(None)
        if value.ndim != len(spec.shape) or tuple(value.shape)[fixed] != spec.shape[fixed]:
            raise DataError(f"input `{spec.name}` has the shape {tuple(value.shape)}; the model takes {wanted}")
        if value.dtype != spec.dtype:
            raise DataError(f"input `{spec.name}` is {value.dtype}; the model takes {spec.dtype}")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            index = tuple((~torch.isfinite(value)).nonzero()[0].tolist())
            raise DataError(f"input `{spec.name}` has {value[index].item()} at index {index}: calibration needs finite values")
        if spec.batch:
            sizes[spec.name] = value.shape[0]
    if len(set(sizes.values())) > 1:
        counted = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise DataError(f"the inputs of a batch hold different numbers of samples: {counted}")
    return next(iter(sizes.values()), 1)
