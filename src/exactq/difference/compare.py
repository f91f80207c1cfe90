"""Where two executions part, how the difference grows, and why: parts of their arithmetic are exchanged, one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from exactq.difference.causes import BESIDE_FLOAT, REMEDIES, Cause
from exactq.difference.executions import Execution
from exactq.difference.findings import Diff, FoundCause, TensorDiff
from exactq.difference.ideal import PARTS, Found, Ideal, Known, evaluate, ideal, magnitude
from exactq.difference.sides import Side, decoded, sides
from exactq.errors import DataError
from exactq.graphs.qdq import REAL
from exactq.numerics.formats import Grid
from exactq.traces import Program, Trace, walk


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
    tally = _Tally({key: _Place(key) for key in keys})
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
    order = [part for part in sorted(PARTS, key=lambda p: -tally.moved(_named(both, p))) if tally.moved(_named(both, part))]
    with torch.no_grad():
        together = _together(both, keys, seen, order) if len(order) > 1 else {}
    return _diff(both, done, tally, {_named(both, part): count for part, count in together.items()})


def _common(both: Ideal) -> list[str]:
    """The keys that are compared, in order: codes of both, or of one where the other is float altogether; then the outputs."""
    a, b = both.a, both.b
    if a.grids and b.grids:
        keys = [key for key in a.grids if key in b.grids]
    else:
        keys = [key for key in (a.grids or b.grids) if key in (a.values or b.values)]
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


@dataclass
class _Place:
    """What was counted of one tensor: end to end, and given the first execution's values before it."""

    key: str
    elements: int = 0
    mismatches: int = 0
    max_lsb: float = 0
    error: float = 0.0
    signal: float = 0.0
    local: int = 0
    local_lsb: float = 0


@dataclass
class _Share:
    """What one cause was found to do: elements that it moves alone, by how much, where, and what is explained with it."""

    moved: int = 0
    max_lsb: float = 0
    places: dict[str, int] = field(default_factory=dict)
    outputs: int = 0


@dataclass
class _Tally:
    places: dict[str, _Place]
    causes: dict[Cause, _Share] = field(default_factory=dict)
    differing: int = 0
    outputs: int = 0

    def moved(self, cause: Cause) -> int:
        """How many elements a cause moves."""
        return self.causes[cause].moved if cause in self.causes else 0

    def part(self, key: str, lsb: Tensor) -> None:
        """Count a tensor that parts given equal values before it."""
        place, count = self.places[key], int((lsb != 0).sum())
        place.local += count
        place.local_lsb = max(place.local_lsb, float(lsb.max()))
        self.differing += count

    def add(self, cause: Cause, key: str, moved: Tensor, lsb: Tensor) -> None:
        count = int(moved.sum())
        if not count:
            return
        share = self.causes.setdefault(cause, _Share())
        share.moved += count
        share.max_lsb = max(share.max_lsb, float(lsb[moved].max()))
        share.places[key] = share.places.get(key, 0) + count


def _batch(both: Ideal, keys: Sequence[str], batch: tuple[Tensor, ...], tally: _Tally) -> None:
    a, b = both.a, both.b
    seen_a, seen_b = a.execution.trace(batch), b.execution.trace(batch)
    given: dict[str, Tensor] = {}
    known = Known(_entries(both, batch), given)
    for key in keys:
        at_a, at_b = _reals(a, key, seen_a), _reals(b, key, seen_b)
        if at_a is None or at_b is None:
            continue
        step = _step(both, key)
        if at_a.shape != at_b.shape:
            shapes = f"{tuple(at_a.shape)} in {a.execution.name} and {tuple(at_b.shape)} in {b.execution.name}"
            raise DataError(f"`{key}` is {shapes}")
        place, lsb = tally.places[key], _lsb(_compared(both, key, at_a), _compared(both, key, at_b), step)
        _count(place, lsb, at_a, at_b)
        _local(both, key, batch, known, at_a, seen_b, tally)
        given[key] = at_a
    _outputs(both, Known(known.inputs, {}), tally)


def _entries(both: Ideal, batch: Sequence[Tensor]) -> dict[str, Tensor]:
    names = (spec.name for spec in both.a.graph.inputs)
    return {name: x.double() if x.is_floating_point() else x for name, x in zip(names, batch, strict=True)}


def _count(place: _Place, lsb: Tensor, at_a: Tensor, at_b: Tensor) -> None:
    differ = lsb != 0
    place.elements += lsb.numel()
    place.mismatches += int(differ.sum())
    if bool(differ.any()):
        place.max_lsb = max(place.max_lsb, float(lsb.max()))
    place.error += float((at_a - at_b).nan_to_num().square().sum())
    place.signal += float(at_a.nan_to_num().square().sum())


def _reals(s: Side, key: str, seen: Trace) -> Tensor | None:
    """What an execution made of a key, float64 reals: decoded codes, or the value where it keeps it real."""
    codes, grid = seen.get(s.step(key)), s.grids.get(key)
    if codes is not None and grid is not None:
        return decoded(codes, grid)
    value = seen.get(s.shown(key))
    if value is None:
        value = seen.get(key + REAL)
    if value is None:
        return None
    # What a module of somebody's shows as reals lies on its grid.
    return value.double() if grid is None else decoded(torch.round(value.double() / grid.scale.double()) + grid.zero, grid)


def _step(both: Ideal, key: str) -> float | None:
    """What one code is worth where two values are compared: the larger step; None for reals on both sides."""
    steps = [float(s.grids[key].scale) for s in (both.a, both.b) if key in s.grids]
    return max(steps, default=None)


def _compared(both: Ideal, key: str, value: Tensor) -> Tensor:
    """The reals that are compared: of codes, the nearest ones beside a float execution, and float32 where both are real.

    Grids that only the rounding of their scale tells apart are compared by their codes.
    """
    known = [s.grids[key] for s in (both.a, both.b) if key in s.grids]
    if not known:
        return value.float().double()
    if len(known) == 1:
        codes = torch.round(value / known[0].scale.double()).nan_to_num() + known[0].zero.double()
        return decoded(codes.clamp(known[0].format.lo, known[0].format.hi), known[0])
    return torch.round(value / known[0].scale.double()) * known[0].scale.double() if _nearly_same(*known) else value


def _nearly_same(first: Grid, second: Grid) -> bool:
    """Whether no code of one is as far as a thousandth of a step from the same code of the other."""
    apart = abs(float(first.scale) / float(second.scale) - 1) * 2**first.format.bits
    return int(first.zero) == int(second.zero) and first.format.signed == second.format.signed and apart < 2.0**-10


def _lsb(first: Tensor, second: Tensor, step: float | None) -> Tensor:
    """How many steps two tensors are apart: 0 where equal, a hundredth at least where not; 1 for reals that differ."""
    same = (first == second) | (first.isnan() & second.isnan())
    if step is None:
        return (~same).double()
    apart = ((first - second).abs() / step).nan_to_num(nan=1.0, posinf=1.0)
    return torch.where(same, 0.0, (apart * 100).round().clamp(min=1) / 100)


def _local(
    both: Ideal,
    key: str,
    batch: tuple[Tensor, ...],
    known: Known,
    at_a: Tensor,
    seen_b: Trace,
    tally: _Tally,
) -> None:
    """Count how the second side parts from the first at one key, given the first's values before it, and why."""
    a, b, step = both.a, both.b, _step(both, key)
    first = _compared(both, key, at_a)
    second = _compared(both, key, _given(b, key, batch, known.keys))
    lsb = _lsb(first, second, step)
    differ = lsb != 0
    _hidden(both, key, batch, seen_b, tally)
    if not bool(differ.any()):
        return
    tally.part(key, lsb)

    def made(parts: Sequence[Cause]) -> tuple[Found, Tensor]:
        found = evaluate(both, [key], known, parts)[key]
        return found, _compared(both, key, found.real)

    base, plain_a = made(())
    last, plain_b = made(PARTS)
    explained = torch.zeros_like(differ)
    for part in PARTS:
        if not _present(both, part):
            continue
        apart = _lsb(plain_a, made((part,))[1], step)
        back = _lsb(plain_b, made([p for p in PARTS if p is not part])[1], step)
        # Of two causes that hide each other one shows only when the other is there already.
        moved = differ & ((apart != 0) | (back != 0))
        tally.add(_named(both, part), key, moved, torch.maximum(apart, back))
        explained |= moved
    for ours, plain, real, s in ((base, plain_a, first, a), (last, plain_b, second, b)):
        off = _lsb(plain, real, step)
        last_bits = differ & (off != 0)
        close = last_bits & _close(both, s, key, known, ours, off, real)
        tally.add(_rounding(s), key, close, off)
        tally.add(Cause.UNKNOWN, key, last_bits & ~close, off)
        explained |= last_bits
    # Some need several causes at once: they count for the one with which they move when parts are exchanged in order.
    exchanged: list[Cause] = []
    for part in PARTS:
        if bool((differ & ~explained).any()) and _present(both, part):
            exchanged.append(part)
            apart = _lsb(plain_a, made(exchanged)[1], step)
            moved = differ & ~explained & (apart != 0)
            tally.add(_named(both, part), key, moved, apart)
            explained |= moved
    tally.add(Cause.UNKNOWN, key, differ & ~explained, lsb)


def _together(
    both: Ideal, keys: Sequence[str], batches: Sequence[tuple[Tensor, ...]], order: Sequence[Cause]
) -> dict[Cause, int]:
    """How many of the elements that part are as the second side has them when these parts are exchanged up to this one."""
    reached = dict.fromkeys(order, 0)
    for batch in batches:
        given: dict[str, Tensor] = {}
        known, seen = Known(_entries(both, batch), given), both.a.execution.trace(batch)
        for key in keys:
            if (at_a := _reals(both.a, key, seen)) is None:
                continue
            second = _compared(both, key, _given(both.b, key, batch, given))
            differ = _lsb(_compared(both, key, at_a), second, 1.0) != 0
            for n in range(len(order) if bool(differ.any()) else 0):
                made = _compared(both, key, evaluate(both, [key], known, order[: n + 1])[key].real)
                reached[order[n]] += int((differ & (_lsb(made, second, 1.0) == 0)).sum())
            given[key] = at_a
    return reached


def _given(s: Side, key: str, batch: tuple[Tensor, ...], given: Mapping[str, Tensor]) -> Tensor:
    """What a side's own program makes of a key from the values that are given, encoded on its own grids; float64 reals."""
    program, preset = s.execution.program, dict[str, Tensor]()
    for name, value in given.items():
        if name not in s.grids:
            preset[name] = value.float()
        elif name != key:
            preset[s.step(name)] = _encoded(s.grids[name], value)
    inputs = tuple(preset.get(name, x) for name, x in zip(program.inputs, batch, strict=True))
    if key in s.grids:
        return decoded(run_from(program, inputs, preset, s.step(key)), s.grids[key])
    name = s.values.get(key, key.partition("@")[0])
    if name in program.inputs:
        return inputs[program.inputs.index(name)].double()
    made = {step.name for step in program.steps}
    return run_from(program, inputs, preset, name if name in made else key + REAL).double()


def _encoded(grid: Grid, value: Tensor) -> Tensor:
    codes = torch.round(value / grid.scale.double()) + grid.zero.double()
    return codes.nan_to_num(nan=grid.format.lo).clamp(grid.format.lo, grid.format.hi).to(grid.format.dtype)


def run_from(program: Program, inputs: Sequence[Tensor], preset: Mapping[str, Tensor], name: str) -> Tensor:
    """The value of that name when those that are `preset` are what they are, whatever would make them."""
    steps = tuple(
        replace(step, run=partial(_same, preset[step.name]), inputs=()) if step.name in preset else step
        for step in program.steps
    )
    (value,) = walk(Program(program.inputs, steps, program.outputs).towards((name,)), inputs)
    return value


def _same(value: Tensor) -> Tensor:
    return value


def _hidden(both: Ideal, key: str, batch: tuple[Tensor, ...], seen_b: Trace, tally: _Tally) -> None:
    """Count as unknown what a runtime or module makes that its stand-in, given the same values, does not."""
    b, keys = both.b, list(tally.places)
    if b.execution.observe is None or (found := _reals(b, key, seen_b)) is None:
        return
    before = {k: v for k in keys[: keys.index(key)] if (v := _reals(b, k, seen_b)) is not None}
    expected = _given(b, key, batch, before)
    lsb = _lsb(_compared(both, key, expected), _compared(both, key, found), _step(both, key))
    differ = lsb != 0
    if bool(differ.any()):
        tally.part(key, lsb)
        tally.add(Cause.UNKNOWN, key, differ, lsb)


def _present(both: Ideal, part: Cause) -> bool:
    """Whether the two sides differ in a part at all."""
    a, b = both.a, both.b
    match part:
        case Cause.WEIGHTS:
            return any(
                (w.scale is None) != (v.scale is None)
                or not torch.equal(w.values, v.values)
                or (w.scale is not None and v.scale is not None and not torch.equal(w.scale, v.scale))
                for name, w in a.weights.items()
                for v in [b.weights[name]]
            )
        case Cause.FLOAT:
            return a.grids.keys() != b.grids.keys()
        case Cause.ACTIVATIONS | Cause.RANGE:
            return any(not grid.same_as(b.grids[key]) for key, grid in a.grids.items() if key in b.grids)
        case Cause.PAIRS:
            return bool(a.pairs or b.pairs)
        case Cause.ACTIVATION:
            return a.fused != b.fused
        case Cause.ZERO:
            return a.inside != b.inside
        case Cause.BIAS:
            return a.rounds_bias != b.rounds_bias or any(
                not torch.equal(bias, b.biases[name]) for name, bias in a.biases.items() if name in b.biases
            )
        case Cause.OVERFLOW:
            return a.rounds_bias != b.rounds_bias
    return False


def _named(both: Ideal, part: Cause) -> Cause:
    """A part's cause: beside a float execution every value's grid is one that the other does not have."""
    return Cause.ACTIVATIONS if part is Cause.FLOAT and not (both.a.grids and both.b.grids) else part


def _rounding(s: Side) -> Cause:
    """What the last bits of a side are called: those of float sums, or of a kernel's multiplier."""
    return Cause.MULTIPLIER if s.kernels else Cause.ORDER


def _close(both: Ideal, s: Side, key: str, known: Known, ours: Found, off: Tensor, real: Tensor) -> Tensor:
    """Where a side is off its own exact arithmetic by what the rounding of its floats can do: one code, at a half step."""
    if ours.steps is None:
        grids = [g.grids[key] for g in (both.a, both.b) if key in g.grids]
        if not grids:
            size = ours.real.abs().max().clamp(min=2.0**-126)
            return (ours.real - real).abs() <= size * 2.0**-12
        steps = ours.real / grids[0].scale.double()
        scale, zero = grids[0].scale.double(), grids[0].zero.double()
    else:
        grid = both.grid(key, () if s is both.a else PARTS)
        assert grid is not None
        steps, scale, zero = ours.steps, grid.scale.double(), grid.zero.double()
    layer = _layer_of(both, key)
    if _rounding(s) is Cause.ORDER and layer and (sums := magnitude(both, key, known)) is not None:
        allowed = sums * (2.0**-24 / scale) + (steps.abs() + zero.abs() + 1) * 2.0**-20
    else:
        allowed = (steps.abs() + zero.abs() + 1) * (2.0**-19 if layer else 2.0**-13)
    half = (steps - steps.floor() - 0.5).abs()
    return (half <= allowed) & (off <= 1.01)


def _layer_of(both: Ideal, key: str) -> bool:
    name = both.a.values.get(key) or both.b.values.get(key) or key
    node = both.nodes.get(name)
    while node is not None and node.all_input_nodes and both.a.graph.name(node) not in both.a.weights:
        if node.target not in (torch.ops.aten.relu.default, torch.ops.aten.clamp.default):
            return False
        node = both.nodes.get(both.a.graph.name(node.all_input_nodes[0]))
    return node is not None


def _outputs(both: Ideal, known: Known, tally: _Tally) -> None:
    """Count how many of the outputs each cause moves when it acts alone in the whole network."""
    keys = [n.removesuffix(REAL) for n in both.a.graph.outputs]
    base = evaluate(both, keys, known, ())
    tally.outputs += sum(found.real.numel() for found in base.values())
    for part in PARTS:
        if (cause := _named(both, part)) not in tally.causes or not _present(both, part):
            continue
        alone = evaluate(both, keys, known, (part,))
        for key in keys:
            lsb = _lsb(_compared(both, key, base[key].real), _compared(both, key, alone[key].real), _step(both, key))
            tally.causes[cause].outputs += int((lsb != 0).sum())


def _diff(both: Ideal, done: int, tally: _Tally, together: Mapping[Cause, int]) -> Diff:
    places, quantized = list(tally.places.values()), bool(both.a.grids and both.b.grids)
    tensors = tuple(
        TensorDiff(
            p.key,
            p.elements,
            p.mismatches,
            p.max_lsb,
            p.local,
            p.local_lsb,
            None if not p.signal else (p.error / p.signal) ** 0.5,
        )
        for p in places
        if p.elements
    )
    causes = [
        FoundCause(
            cause,
            share.moved / tally.differing,
            share.max_lsb,
            (REMEDIES if quantized else REMEDIES | BESIDE_FLOAT)[cause],
            together[cause] / tally.differing if cause in together else None,
            share.outputs / tally.outputs if tally.outputs and cause in PARTS else None,
            tuple(sorted(share.places, key=lambda k: -share.places[k])),
        )
        for cause, share in tally.causes.items()
    ]
    causes.sort(key=lambda c: -c.share)
    first = next((t.name for t in tensors if t.given_equal), None)
    return Diff(both.a.execution.name, both.b.execution.name, done, first, tuple(causes), tensors)
