"""Make docs/images/run.svg from a real run in a terminal of 80 columns: `python docs/picture.py`."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

COMMAND = ("run", "simplecnn", "--yes")
COLUMNS = 80
UP = "\x1b[1A"
"""One line up: what a bar says before it wipes itself out."""

PICTURE = Path(__file__).parent / "images" / "run.svg"


def shown(folder: str) -> str:
    """What the command prints on a terminal, with its colours; bars that were wiped out are left out."""
    end, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    command = [sys.executable, "-m", "exactq", *COMMAND]
    env = os.environ | {"TERM": "xterm-256color"}
    process = subprocess.Popen(command, cwd=folder, env=env, stdin=inner, stdout=inner, stderr=inner)
    os.close(inner)
    data = b""
    while True:
        try:
            part = os.read(end, 65536)
        except OSError:  # the command ended and its side is closed
            break
        if not part:
            break
        data += part
    process.wait()
    lines: list[str] = []
    for line in data.decode().replace("\r\n", "\n").split("\n"):
        if wiped := line.count(UP):
            del lines[-wiped:]
        lines.append(line.rpartition("\x1b[2K")[2].rpartition("\r")[2])
    return "\n".join(lines).rstrip()


def main() -> None:
    """Run the command and write the picture."""
    with tempfile.TemporaryDirectory() as folder:
        text = shown(folder)
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.assemble(("$ ", "bold"), " ".join(("exactq", *COMMAND))))
    console.print(Text.from_ansi(text))
    PICTURE.parent.mkdir(exist_ok=True)
    svg = console.export_svg(title="exactq", unique_id="exactq")
    # No font from the network: any monospaced one will do.
    begin, end = svg.index("@font-face"), svg.rindex("@font-face")
    end = svg.index("}", end) + 1
    PICTURE.write_text(svg[:begin] + svg[end:], encoding="utf-8")


if __name__ == "__main__":
    main()
