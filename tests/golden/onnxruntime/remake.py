"""Ask ONNX Runtime the golden cases again, on this machine or, under user-mode emulation, on another instruction set.

    python -m tests.golden.onnxruntime.remake
    qemu-x86_64 -cpu Haswell python -m tests.golden.onnxruntime.remake

Needs numpy, onnx and onnxruntime alone. Writes `<isa>.npz` beside this file: `header` (JSON: version, isa, seed, command, and
for each case its operator and where its arrays lie) and `data` (their bytes, one after the other, inputs before the output).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime
from tests.golden import archive
from tests.kernels import cases, ort

HERE = Path(__file__).parent
SEED, EACH, LARGEST = 20260, 10, 400


def chosen(seed: int, each: int, largest: int | None) -> Iterator[tuple[str, cases.Case]]:
    """For every combination the first `each` cases of at most `largest` bytes, or the smallest of those looked at."""
    for name, pairing in cases.COMBINATIONS:
        seen = [cases.case(name, pairing, seed, index) for index in range(each if largest is None else 12 * each)]
        sizes = [sum(a.nbytes for a in case.inputs.values() if a is not None) for case in seen]
        ranked = sorted(range(len(seen)), key=lambda i: (max(sizes[i] - (largest or 0), 0), i))
        yield from ((f"{name}-{pairing}-{i}", seen[i]) for i in ranked[:each])


def make(seed: int, each: int, largest: int | None) -> tuple[dict[str, Any], bytes]:
    """The header and the bytes of what the runtime answers here."""
    told, arrays = [], archive.Arrays()
    store = arrays.put
    for name, case in chosen(seed, each, largest):
        answer = ort.run(case)
        inputs = {key: store(array) for key, array in case.inputs.items()}
        told.append([name, case.op, case.domain, list(case.fed), case.out, inputs, dict(case.attributes), store(answer)])
    isa = ort.isa()
    prefix = "qemu-x86_64 -cpu Haswell " if isa == "avx2" else ""
    command = f"{prefix}python -m tests.golden.onnxruntime.remake"
    header = {"runtime": f"onnxruntime {onnxruntime.__version__}", "isa": isa, "seed": seed, "command": command, "cases": told}
    return header, bytes(arrays.data)


def read(path: Path) -> tuple[dict[str, Any], list[tuple[str, cases.Case, cases.Array]]]:
    """The header, and each case with its name and the runtime's answer."""
    header, data = archive.read(path)
    found = []
    for name, op, domain, fed, out, inputs, attributes, answer in header["cases"]:
        case = cases.Case(op, {key: archive.get(data, at) for key, at in inputs.items()}, tuple(fed), out, attributes, domain)
        found.append((name, case, archive.get(data, answer)))
    return header, found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seed", type=int, default=SEED)
    options.add_argument("--each", type=int, default=EACH, help="cases of each operator and pairing")
    options.add_argument("--largest", type=int, default=LARGEST, help="bytes of a case; 0 takes any")
    options.add_argument("--out", type=Path, help="instead of <isa>.npz here")
    given = options.parse_args()
    header, data = make(given.seed, given.each, given.largest or None)
    path = given.out or HERE / f"{header['isa']}.npz"
    archive.write(path, header, data)
    print(f"{path.name}: {len(header['cases'])} cases, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
