"""Where two executions part, how the difference grows, and why: parts of their arithmetic are exchanged, one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from exactq.difference.executions import Execution
from exactq.difference.experiments import attribute, count_outputs, explained_together, named
from exactq.difference.findings import Diff
from exactq.difference.ideal import PARTS, Ideal, Known, ideal
from exactq.difference.readings import apart, compared, entries, reals, step_of
from exactq.difference.sides import sides
from exactq.difference.tally import Place, Tally, findings
from exactq.errors import DataError
from exactq.graphs.qdq import REAL


def diff(
    a: Execution,
    b: Execution,
    batches: Iterable[Sequence[Tensor]],
    *,
    inputs: int = 64,
    progress: Callable[[int], None] | None = None,
) -> Diff:
    """What tells two executions of one model apart on at least `inputs` inputs (fewer if the batches end).

    Tensors are those that both have. For each it is asked what the second makes of the first's own values before it, so that a
    difference is seen where it arises, and the parts of the arithmetic are exchanged there. Raises `DataError` for models that
    are not the same, inputs that they do not take, and no input at all.
    """
    both = ideal(*sides(a, b))
    keys = _common(both)
    tally = Tally({key: Place(key) for key in keys})
    free = all(i.batch for i in a.graph.inputs)
    done, seen = 0, []
    for batch in batches:
        batch = tuple(x[: inputs - done] for x in batch) if free else tuple(batch)
        _check(both, batch)
        seen.append(batch)
        with torch.no_grad():
            _batch(both, keys, batch, tally)
        done += len(batch[0])
        if progress is not None:
            progress(len(batch[0]))
        if done >= inputs:
            break
    if not done:
        raise DataError("there is no input to compare on: give at least one batch")
    order = [part for part in sorted(PARTS, key=lambda p: -tally.moved(named(both, p))) if tally.moved(named(both, part))]
    with torch.no_grad():
        shown = [key for key in keys if key not in tally.unseen]
        together = explained_together(both, shown, seen, order) if len(order) > 1 else {}
    return findings(both, done, tally, {named(both, part): count for part, count in together.items()})


def _common(both: Ideal) -> list[str]:
    """The keys that are compared, in order: codes of both, or of one where the other is float altogether; then the outputs."""
    a, b = both.a, both.b
    keys = [key for key in a.grids if key in b.grids] if a.grids and b.grids else [*a.grids, *b.grids]
    if around := a.around | b.around:
        # Reals around layers that encode them at run time are compared, too, each in its place.
        reals = [name for name in both.nodes if name in around and name not in a.grids and name not in b.grids]
        order = {name: n for n, name in enumerate(a.graph.name(node) for node in a.graph)}
        sources = a.values | b.values  # type: ignore[operator]
        keys = sorted([*keys, *(name for name in reals if name not in keys)], key=lambda key: order[sources.get(key, key)])
    outputs = [name.removesuffix(REAL) for name in a.graph.outputs]
    return [*keys, *(name for name in outputs if name not in keys and name not in a.grids and name not in b.grids)]


def _check(both: Ideal, batch: Sequence[Tensor]) -> None:
    specs = both.a.graph.inputs
    if len(batch) != len(specs):
        raise DataError(f"{len(batch)} inputs given, the models take {len(specs)}: {', '.join(i.name for i in specs)}")
    for spec, x in zip(specs, batch, strict=True):
        if x.ndim != len(spec.shape) or tuple(x.shape[1:]) != tuple(spec.shape[1:]):
            raise DataError(f"input `{spec.name}` is {('n', *spec.shape[1:])}, not {tuple(x.shape)}".replace("'", ""))
    if not len(batch[0]):
        raise DataError("a batch has no sample: give one at least")


def _batch(both: Ideal, keys: Sequence[str], batch: tuple[Tensor, ...], tally: Tally) -> None:
    a, b = both.a, both.b
    seen_a, seen_b = a.execution.trace(batch), b.execution.trace(batch)
    inputs = entries(both, batch)
    known = Known(inputs, {}), Known(inputs, {})
    for key in keys:
        at_a, at_b = reals(a, key, seen_a), reals(b, key, seen_b)
        if at_a is None or at_b is None:
            tally.unseen[key] = b.execution.name if at_b is None else a.execution.name
            continue
        step = step_of(both, key)
        if at_a.shape != at_b.shape:
            shapes = f"{tuple(at_a.shape)} in {a.execution.name} and {tuple(at_b.shape)} in {b.execution.name}"
            raise DataError(f"`{key}` is {shapes}")
        place, lsb = tally.places[key], apart(compared(both, key, at_a), compared(both, key, at_b), step)
        _count(place, lsb, at_a, at_b)
        attribute(both, key, batch, known, (at_a, at_b), tally)
        known[0].keys[key], known[1].keys[key] = at_a, at_b
    count_outputs(both, Known(inputs, {}), tally)


def _count(place: Place, lsb: Tensor, at_a: Tensor, at_b: Tensor) -> None:
    differ = lsb != 0
    place.elements += lsb.numel()
    place.mismatches += int(differ.sum())
    if bool(differ.any()):
        place.max_lsb = max(place.max_lsb, float(lsb.max()))
    place.error += float((at_a - at_b).nan_to_num().square().sum())
    place.signal += float(at_a.nan_to_num().square().sum())
