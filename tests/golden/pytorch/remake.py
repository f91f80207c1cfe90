"""Ask PyTorch's int8 engines the golden cases again, on this machine or on another instruction set.

    python -m tests.golden.pytorch.remake
    qemu-x86_64 -cpu Haswell python -m tests.golden.pytorch.remake

These engines are to go (torch.ao is deprecated since 2.10), so the files keep their bits. Writes `<isa>.npz` beside this file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from tests.golden import archive
from tests.kernels.engine_cases import COMBINATIONS, LAYERS, Case, case
from tests.kernels.engines import ask, isa_of

HERE = Path(__file__).parent
SEED, EACH, LARGEST = 20261, 8, 500


def chosen(engine: str, name: str, each: int, largest: int) -> list[tuple[str, Case]]:
    """The first cases of at most `largest` bytes, or the smallest of those looked at; fewer of operators that engines share."""
    each = each if name in LAYERS or engine in ("fbgemm", "qnnpack") else 1
    seen = [case(name, SEED, index) for index in range(12 * each)]
    sizes = [sum(a.nbytes for a in made.arrays.values()) for made in seen]
    ranked = sorted(range(len(seen)), key=lambda i: (max(sizes[i] - largest, 0), i))
    return [(f"{engine}-{name}-{i}", seen[i]) for i in ranked[:each]]


def make(each: int, largest: int) -> tuple[dict[str, Any], bytes]:
    """The header and the bytes of what the engines answer here."""
    told, arrays = [], archive.Arrays()
    isa = isa_of("fbgemm")
    for engine, name in COMBINATIONS:
        assert isa_of(engine) == isa, f"{engine} has {isa_of(engine)}, fbgemm {isa}"
        for label, made in chosen(engine, name, each, largest):
            answer = ask(engine, made)
            if answer is not None:
                kept = {key: arrays.put(a) for key, a in made.arrays.items()}
                told.append([label, engine, made.op, kept, dict(made.options), arrays.put(answer)])
    prefix = "qemu-x86_64 -cpu Haswell " if isa == "avx2" else ""
    command = f"{prefix}python -m tests.golden.pytorch.remake"
    return {"runtime": f"torch {torch.__version__}", "isa": isa, "seed": SEED, "command": command, "cases": told}, bytes(
        arrays.data
    )


def read(path: Path) -> tuple[dict[str, Any], list[tuple[str, str, Case, archive.Array]]]:
    """The header, and each case with its name, its engine and the engine's answer."""
    header, data = archive.read(path)
    found = []
    for label, engine, op, arrays, options, answer in header["cases"]:
        lists = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
        made = Case(op, {k: a for k, at in arrays.items() if (a := archive.get(data, at)) is not None}, lists)
        expected = archive.get(data, answer)
        assert expected is not None
        found.append((label, engine, made, expected))
    return header, found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--each", type=int, default=EACH, help="cases of each engine and operator")
    options.add_argument("--largest", type=int, default=LARGEST, help="bytes of a case")
    options.add_argument("--out", type=Path, help="instead of <isa>.npz here")
    given = options.parse_args()
    header, data = make(given.each, given.largest)
    path = given.out or HERE / f"{header['isa']}.npz"
    archive.write(path, header, data)
    print(f"{path.name}: {len(header['cases'])} cases, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
