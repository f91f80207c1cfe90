"""Numbers as a person reads them: few digits, honest units, no false precision."""

from __future__ import annotations

import math
from collections.abc import Sequence

from exactq.reports.facts import MetricFacts


def number(x: float, digits: int = 3) -> str:
    """A real with `digits` significant digits, small and large ones as powers of ten.

    >>> number(0.00392157), number(130.0), number(-1234567.0), number(2.1e-9)
    ('0.00392', '130', '−1,234,567', '2.1e−9')
    """
    if x and not 1e-4 <= abs(x) < 1e9:
        mantissa, _, exponent = f"{x:.{digits - 1}e}".partition("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    elif abs(x) >= 10 ** (digits - 1):
        text = f"{x:,.0f}"
    else:
        text = f"{x:.{digits}g}"
    return text.replace("-", "−")


def count(n: int) -> str:
    """A whole number with its thousands apart.

    >>> count(19735808)
    '19,735,808'
    """
    return f"{n:,}"


def several(n: int, thing: str) -> str:
    """A number of things.

    >>> several(1, "layer"), several(2000, "pair")
    ('1 layer', '2,000 pairs')
    """
    return f"{count(n)} {thing}{'' if n == 1 else 's'}"


def short(n: int) -> str:
    """A count in thousands, millions or billions.

    >>> short(940), short(40_960), short(40_813_184)
    ('940', '41.0 k', '40.8 M')
    """
    for power, unit in ((9, "G"), (6, "M"), (3, "k")):
        if n >= 10**power:
            return f"{n / 10**power:.3g} {unit}" if n >= 10 ** (power + 2) else f"{n / 10**power:.1f} {unit}"
    return str(n)


def size(n: int) -> str:
    """Bytes in binary units.

    >>> size(19299), size(640), size(47_000_000)
    ('18.8 KiB', '640 B', '44.8 MiB')
    """
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if n >= 1024**power:
            return f"{n / 1024**power:.3g} {unit}"
    return f"{n} B"


def share(x: float) -> str:
    """A fraction as a percentage; one that is not whole never reads as 100 %, and one that is not nothing never as 0 %.

    >>> share(1.0), share(0.99999), share(0.0), share(0.00001), share(0.1234)
    ('100 %', '> 99.9 %', '0 %', '< 0.1 %', '12.3 %')
    """
    if x in (0.0, 1.0):
        return f"{x:.0%}".replace("%", " %")
    text = f"{100 * x:.1f} %"
    return {"100.0 %": "> 99.9 %", "0.0 %": "< 0.1 %"}.get(text, text)


def decibels(x: float) -> str:
    """A ratio in dB.

    >>> decibels(36.8076)
    '36.8 dB'
    """
    return f"{x:.1f} dB".replace("-", "−")


def dimensions(shape: Sequence[int]) -> str:
    """A shape.

    >>> dimensions((16, 3, 3, 3)), dimensions(())
    ('16×3×3×3', 'scalar')
    """
    return "×".join(map(str, shape)) or "scalar"


def score(metric: MetricFacts, value: float) -> str:
    """A metric's value: accuracies as percentages, other metrics as numbers of four digits."""
    return f"{100 * value:.2f} %" if metric.name == "accuracy" else number(value, 4)


def change(metric: MetricFacts, before: float, after: float) -> str:
    """How far a metric went, with its sign; points for accuracies."""
    gain = after - before
    if math.isclose(before, after, abs_tol=1e-12):
        return "unchanged"
    text = f"{100 * gain:+.2f} points" if metric.name == "accuracy" else f"{'+' if gain > 0 else ''}{number(gain)}"
    return text.replace("-", "−")


def drop(metric: MetricFacts, allowed: float) -> str:
    """What a metric may lose; points for accuracies."""
    return f"{number(100 * allowed)} points" if metric.name == "accuracy" else number(allowed)


def times(ratio: float) -> str:
    """How much smaller or larger, from before / after.

    >>> times(2.898), times(12.4), times(0.5)
    ('2.9×', '12×', '0.50×')
    """
    return f"{ratio:.0f}×" if ratio >= 10 else f"{ratio:.1f}×" if ratio >= 1 else f"{ratio:.2f}×"
