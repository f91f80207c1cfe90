"""What is counted while two executions are compared, and what it comes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from exactq.difference.causes import BESIDE_FLOAT, REMEDIES, Cause
from exactq.difference.findings import Diff, FoundCause, TensorDiff
from exactq.difference.ideal import PARTS, Ideal


@dataclass
class Place:
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
class Share:
    """What one cause was found to do: elements that it moves alone, by how much, where, and what is explained with it."""

    moved: int = 0
    max_lsb: float = 0
    places: dict[str, int] = field(default_factory=dict)
    outputs: int = 0


@dataclass
class Tally:
    """All that was counted: by tensor, by cause, elements that part given equal values, and elements of the outputs.

    `unseen`: keys that could not be compared -> the execution that does not show them.
    """

    places: dict[str, Place]
    causes: dict[Cause, Share] = field(default_factory=dict)
    differing: int = 0
    outputs: int = 0
    unseen: dict[str, str] = field(default_factory=dict)

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
        """Count the elements that a cause moves at a key, and how far."""
        count = int(moved.sum())
        if not count:
            return
        share = self.causes.setdefault(cause, Share())
        share.moved += count
        share.max_lsb = max(share.max_lsb, float(lsb[moved].max()))
        share.places[key] = share.places.get(key, 0) + count


def findings(both: Ideal, done: int, tally: Tally, together: Mapping[Cause, int]) -> Diff:
    """What was counted on `done` inputs; `together`: how many elements are explained by a cause and those before it."""
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
    return Diff(both.a.execution.name, both.b.execution.name, done, first, tuple(causes), tensors, dict(tally.unseen))
