"""From a signal-to-noise ratio to a colour: five levels, told apart by eyes that see no red or green as well."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    """The ratios below `below` dB (and not of a lower level): a name, a legend, and a colour on white."""

    name: str
    below: float
    legend: str
    light: str


LEVELS = (
    Level("l4", math.inf, "40 dB and more", "#1a7f8e"),
    Level("l3", 40.0, "30 to 40 dB", "#5fb3a8"),
    Level("l2", 30.0, "20 to 30 dB", "#e3c467"),
    Level("l1", 20.0, "10 to 20 dB", "#e5883a"),
    Level("l0", 10.0, "below 10 dB", "#c03a2b"),
)
"""From best to worst. 20 dB is noise of a tenth of the signal, 40 dB of a hundredth."""


def level(sqnr_db: float | None) -> str:
    """The name of a ratio's level; `none` where there is no ratio.

    >>> level(36.8), level(40.0), level(None)
    ('l3', 'l4', 'none')
    """
    if sqnr_db is None:
        return "none"
    return next(found.name for found in reversed(LEVELS) if sqnr_db < found.below)
