"""Samples that cannot be read are left out, named and counted: one damaged file among thousands ends no run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from exactq.errors import DataError

NAMED = 3
"""So many are named in a sentence, the others counted."""


class UnreadableError(Exception):
    """A sample that cannot be read, and why in a few words."""


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Which samples were looked at so far, by index, and which of them could not be read: index -> name and reason.

    It grows as data is read. A sample counts once, however often it is met; one that was left out stays out.
    """

    seen: set[int] = field(default_factory=set)
    found: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Samples:
    """What `read(index)` gives, sample by sample, or its `UnreadableError`; `name(index)` is for a person.

    `labels` int64 (n,); `classes` are their names.
    """

    read: Callable[[int], Tensor]
    name: Callable[[int], str]
    labels: Tensor
    classes: Sequence[str]

    def those_readable(self, indices: Tensor, left_out: LeftOut) -> tuple[Tensor, Tensor] | None:
        """The samples (m, …) and their labels (m,), in their order and without those that cannot be read; None for none.

        `left_out` learns of those. Raises `DataError` where no sample of a class can be read.
        """
        kept: list[int] = []
        found: list[Tensor] = []
        for index in indices.tolist():
            left_out.seen.add(index)
            sample = self._tried(index, left_out)
            if sample is not None:
                kept.append(index)
                found.append(sample)
        if not kept:
            return None
        return torch.stack(found), self.labels[kept]

    def _tried(self, index: int, left_out: LeftOut) -> Tensor | None:
        """The sample; None where it cannot be read, and at least another of its class can."""
        if index in left_out.found:
            return None
        try:
            return self.read(index)
        except UnreadableError as e:
            left_out.found[index] = f"{self.name(index)} ({e})"
        label = int(self.labels[index])
        peers = torch.nonzero(self.labels == label).flatten().tolist()
        for peer in peers:
            if peer in left_out.found:
                continue
            try:
                self.read(peer)
            except UnreadableError as e:
                left_out.seen.add(peer)
                left_out.found[peer] = f"{self.name(peer)} ({e})"
            else:
                return None
        bad = [left_out.found[peer] for peer in peers]
        raise DataError(
            f"no image of the class '{self.classes[label]}' can be decoded: {listed(bad)}; each class needs one at least"
        )


def remarks(parts: Iterable[LeftOut]) -> list[str]:
    """What there is to say about all `parts` together: nothing, or one sentence.

    >>> remarks([LeftOut({0, 1, 2}, {1: "cat/1.png (empty file)"}), LeftOut({0}), LeftOut()])
    ['1 of 4 images could not be decoded and was left out: cat/1.png (empty file)']
    """
    parts = list(parts)
    found = sorted(text for part in parts for text in part.found.values())
    if not found:
        return []
    verb = "was" if len(found) == 1 else "were"
    total = sum(len(part.seen) for part in parts)
    return [f"{len(found):,} of {total:,} images could not be decoded and {verb} left out: {listed(found)}"]


def listed(texts: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(texts) - NAMED:,} more" if len(texts) > NAMED else ""
    return ", ".join(texts[:NAMED]) + more
