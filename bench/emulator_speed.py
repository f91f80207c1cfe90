"""What does knowing every integer cost? The emulator's forward beside the float graph's, eager and compiled, one thread."""

from __future__ import annotations

import sys

import torch
from common import data_folder, interleaved, machine, peak_memory, table

from exactq import flow
from exactq.compilation import compiled
from exactq.graphs.programs import program
from exactq.kernels.mlas import ISAS
from exactq.sources.resolve import resolve
from exactq.traces import walk


def main() -> None:
    """Print milliseconds of a batch of 64 and the ratio to the float graph; the integers are compared first."""
    torch.set_num_threads(1)
    weights = data_folder() / "models" / "resnet20-12fca82f.th"
    source = resolve("resnet20", weights=str(weights), calibration=64)
    graph = flow.prepare(source.module, source.example)
    images = [b.inputs for b in source.dataset.calibration]
    made, safe = (flow.quantize_graph(graph, calibration=images, target=f"onnxruntime@{isa}") for isa in ("avx512vnni", "avx2"))
    inputs = next(iter(source.dataset.evaluation)).inputs
    reference = program(graph)
    runs = {"float module": lambda: source.module(*inputs), "float graph": lambda: walk(reference, inputs)}
    emulators = {f"emulator {isa}, full-range weights": made.program(isa) for isa in ISAS}
    emulators["emulator avx2, its own plan: pair-safe weights"] = safe.program("avx2")
    for name, emulator in emulators.items():
        runs[name] = lambda emulator=emulator: walk(emulator, inputs)
    if "--eager" not in sys.argv:
        fast = compiled(made.program("avx512vnni"))
        with torch.no_grad():
            assert torch.equal(fast(inputs)[0], walk(made.program("avx512vnni"), inputs)[0])
        runs["emulator avx512vnni, compiled"] = lambda: fast(inputs)
        fast_float = torch.compile(lambda *x: walk(reference, x))
        runs["float graph, compiled"] = lambda: fast_float(*inputs)
    with torch.no_grad():
        times = interleaved(runs, rounds=15)
    print(f"resnet20, batch 64; full-range weights saturate on avx2, which the emulator corrects pair by pair; {machine()}\n")
    base = times["float graph"]
    table(("forward", "ms", "times float graph"), [(n, f"{ms:.1f}", f"{ms / base:.2f}") for n, ms in times.items()])
    print(f"\n{peak_memory()}")


if __name__ == "__main__":
    main()
