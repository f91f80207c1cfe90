"""How long until the doors are open? Whole processes, best of several, beside an empty interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from time import perf_counter

from common import table

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import exactq": [sys.executable, "-c", "import exactq"],
    "exactq --help": [str(Path(sys.executable).with_name("exactq")), "--help"],
}


def main() -> None:
    """Print the best and the median of 15 processes each, and the ratio to an empty interpreter."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(15):
        for name, command in COMMANDS.items():
            start = perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times[name].append((perf_counter() - start) * 1000)
    empty = min(times["python -c pass"])
    table(
        ("process", "best ms", "median ms", "times an empty one"),
        [(n, f"{min(t):.0f}", f"{sorted(t)[len(t) // 2]:.0f}", f"{min(t) / empty:.1f}") for n, t in times.items()],
    )


if __name__ == "__main__":
    main()
