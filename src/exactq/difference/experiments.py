"""Experiments at one value: parts of the arithmetic are exchanged, and what moves is counted for the part's cause."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from exactq.difference.causes import Cause
from exactq.difference.ideal import PARTS, Found, Ideal, Known, evaluate, magnitude
from exactq.difference.readings import apart, compared, entries, made_from, reals, step_of
from exactq.difference.sides import Side
from exactq.difference.tally import Tally
from exactq.graphs.qdq import REAL


def attribute(
    both: Ideal, key: str, batch: tuple[Tensor, ...], known: tuple[Known, Known], at: tuple[Tensor, Tensor], tally: Tally
) -> None:
    """Count how the second side parts from the first at one key, given the first's values before it, and why.

    `known` and `at` are those of both sides: the values before the key, and the key's own; float64 reals.
    """
    a, b, step = both.a, both.b, step_of(both, key)
    before, _ = known
    first = compared(both, key, at[0])
    second = compared(both, key, made_from(b, key, batch, before.keys))
    lsb = apart(first, second, step)
    differ = lsb != 0
    if b.execution.observe is not None:
        _hidden(both, key, batch, known[1], at[1], tally)
    if not bool(differ.any()):
        return
    tally.part(key, lsb)

    def made(parts: Sequence[Cause]) -> tuple[Found, Tensor]:
        found = evaluate(both, [key], before, parts)[key]
        return found, compared(both, key, found.real)

    base, plain_a = made(())
    last, plain_b = made(PARTS)
    explained = torch.zeros_like(differ)
    for part in PARTS:
        if not _present(both, part):
            continue
        forth = apart(plain_a, made((part,))[1], step)
        back = apart(plain_b, made([p for p in PARTS if p is not part])[1], step)
        # Of two causes that hide each other one shows only when the other is there already.
        moved = differ & ((forth != 0) | (back != 0))
        tally.add(named(both, part), key, moved, torch.maximum(forth, back))
        explained |= moved
    counted: dict[Cause, Tensor] = {}
    for ours, plain, real, s in ((base, plain_a, first, a), (last, plain_b, second, b)):
        off = apart(plain, real, step)
        last_bits = differ & (off != 0)
        close = last_bits & _close(both, s, key, before, ours, off, real)
        for cause, moved in ((_rounding(s), close), (Cause.UNKNOWN, last_bits & ~close)):
            # Where the last bits of both sides are off, the element is still one.
            already = counted.get(cause, torch.zeros_like(moved))
            tally.add(cause, key, moved & ~already, off)
            counted[cause] = already | moved
        explained |= last_bits
    # Some need several causes at once: they count for the one with which they move when parts are exchanged in order.
    exchanged: list[Cause] = []
    for part in PARTS:
        if bool((differ & ~explained).any()) and _present(both, part):
            exchanged.append(part)
            forth = apart(plain_a, made(exchanged)[1], step)
            moved = differ & ~explained & (forth != 0)
            tally.add(named(both, part), key, moved, forth)
            explained |= moved
    tally.add(Cause.UNKNOWN, key, differ & ~explained, lsb)


def _hidden(both: Ideal, key: str, batch: tuple[Tensor, ...], known: Known, found: Tensor, tally: Tally) -> None:
    """Count what the second side's runtime or module makes that its stand-in, given the same values, does not."""
    b, answer = both.b, compared(both, key, found)
    lsb = apart(compared(both, key, made_from(b, key, batch, known.keys)), answer, step_of(both, key))
    differ = lsb != 0
    if not bool(differ.any()):
        return
    tally.part(key, lsb)
    ours = evaluate(both, [key], known, PARTS)[key]
    off = apart(compared(both, key, ours.real), answer, step_of(both, key))
    close = differ & ((off == 0) | _close(both, b, key, known, ours, off, answer))
    tally.add(_rounding(b), key, close, lsb)
    tally.add(Cause.UNKNOWN, key, differ & ~close, lsb)


def explained_together(
    both: Ideal, keys: Sequence[str], batches: Sequence[tuple[Tensor, ...]], order: Sequence[Cause]
) -> dict[Cause, int]:
    """How many of the elements that part are as the second side has them when these parts are exchanged up to this one."""
    reached = dict.fromkeys(order, 0)
    for batch in batches:
        given: dict[str, Tensor] = {}
        known, seen = Known(entries(both, batch), given), both.a.execution.trace(batch)
        for key in keys:
            at_a = reals(both.a, key, seen)
            assert at_a is not None  # it was there before
            second = compared(both, key, made_from(both.b, key, batch, given))
            differ = apart(compared(both, key, at_a), second, 1.0) != 0
            for n in range(len(order) if bool(differ.any()) else 0):
                made = compared(both, key, evaluate(both, [key], known, order[: n + 1])[key].real)
                reached[order[n]] += int((differ & (apart(made, second, 1.0) == 0)).sum())
            given[key] = at_a
    return reached


def count_outputs(both: Ideal, known: Known, tally: Tally) -> None:
    """Count how many of the outputs each cause moves when it acts alone in the whole network."""
    keys = [n.removesuffix(REAL) for n in both.a.graph.outputs]
    base = evaluate(both, keys, known, ())
    tally.outputs += sum(found.real.numel() for found in base.values())
    for part in PARTS:
        if (cause := named(both, part)) not in tally.causes or not _present(both, part):
            continue
        alone = evaluate(both, keys, known, (part,))
        for key in keys:
            lsb = apart(compared(both, key, base[key].real), compared(both, key, alone[key].real), step_of(both, key))
            tally.causes[cause].outputs += int((lsb != 0).sum())


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
        case Cause.FLOAT | Cause.SUM:
            dynamic = part is Cause.FLOAT and a.dynamic != b.dynamic
            return dynamic or any(both.joined(key) == (part is Cause.SUM) for key in a.grids.keys() ^ b.grids.keys())
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


def named(both: Ideal, part: Cause) -> Cause:
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
    layer = both.layer(key) is not None
    if _rounding(s) is Cause.ORDER and layer and (sums := magnitude(both, key, known)) is not None:
        allowed = sums * (2.0**-24 / scale) + (steps.abs() + zero.abs() + 1) * 2.0**-20
    else:
        allowed = (steps.abs() + zero.abs() + 1) * (2.0**-19 if layer else 2.0**-13)
    half = (steps - steps.floor() - 0.5).abs()
    codes = off if ours.steps is None else (ours.real - real).abs() / scale  # of its own grid
    return (half <= allowed) & ((codes - 1).abs() <= 0.01)
