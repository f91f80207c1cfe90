"""How large is a report, and how long until it is drawn? The page of a run of resnet18, 3×224×224, random weights.

Drawn means: a headless Chromium starts, loads the page, and writes its picture; the time of the same with an empty page is
taken off. Without a browser only the size is measured.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from common import interleaved, machine, table

from exactq import runs
from exactq.reports import HTML

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --hide-scrollbars"
).split()
WIDTHS = {"desk": 1280, "phone": 390}
HEIGHT, ROUNDS = 4000, 7
MOST_BYTES, MOST_MS = 3_000_000, 2000


def main() -> None:
    """Print size and drawing time of the report of a folder named on the command line, or of a new run's."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch, "run")
        if not folder.exists():
            runs.run("resnet18", random_weights=True, calibration=16, out=str(folder))
        page, empty = folder / HTML, Path(scratch, "empty.html")
        empty.write_text("<!doctype html><title>empty</title>")
        size = page.stat().st_size
        rows = [("size", f"{size:,} bytes", f"{size / MOST_BYTES:.2f}")]
        browser = next(filter(None, map(shutil.which, BROWSERS)), None)
        for name, width in WIDTHS.items():
            if browser is None:
                rows.append((f"drawn at {width} ({name})", "no browser found", ""))
                continue
            pages = {"empty": empty, "report": page}
            times = interleaved({n: drawing(browser, p, width, Path(scratch)) for n, p in pages.items()}, rounds=ROUNDS)
            taken = times["report"] - times["empty"]
            shown = f"{taken:.0f} ms ({times['report']:.0f} less {times['empty']:.0f} for an empty page)"
            rows.append((f"drawn at {width} ({name})", shown, f"{taken / MOST_MS:.2f}"))
    print(f"the report of {folder.name}; {machine()}\n")
    table(("what", "measured", "times what is allowed"), rows)


def drawing(browser: str, page: Path, width: int, scratch: Path) -> Callable[[], object]:
    """A function that draws the page once, in a browser with an empty profile."""

    def draw() -> None:
        with tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as profile:
            place = [f"--user-data-dir={profile}", f"--window-size={width},{HEIGHT}", f"--screenshot={profile}/page.png"]
            command = [browser, *FLAGS, *place, page.resolve().as_uri()]
            subprocess.run(command, check=True, capture_output=True)
            assert Path(profile, "page.png").stat().st_size > 1000

    return draw


if __name__ == "__main__":
    main()
