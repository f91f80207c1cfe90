"""How much faster is the int8 file than the float file in ONNX Runtime? One thread, batch 1, random weights, interleaved."""

from __future__ import annotations

import sys
from functools import partial

from common import interleaved, machine, peak_memory, table

from exactq import flow
from exactq.sources.resolve import resolve
from exactq.targets import target_named
from exactq.targets.onnxruntime import runtime


def main() -> None:
    """Print milliseconds, speed-up and size for each model named on the command line (resnet18 without any)."""
    rows = []
    for model in sys.argv[1:] or ["resnet18"]:
        source = resolve(model, random_weights=True, calibration=8, batch_size=4)
        graph = flow.prepare(source.module, source.example)
        made = flow.quantize_graph(graph, calibration=(b.inputs for b in source.dataset.calibration))
        files = {"float": target_named("onnxruntime")[0].emit(graph), "int8": made.artifact()}
        one = tuple(x[:1].contiguous() for x in source.example)
        sessions = {name: runtime.session(file, threads=1) for name, file in files.items()}
        times = interleaved({name: partial(runtime.run, s, one) for name, s in sessions.items()}, rounds=40)
        shape = "×".join(map(str, one[0].shape))
        for name, ms in times.items():
            rows.append((model, shape, name, f"{ms:.2f}", f"{times['float'] / ms:.2f}", len(files[name]) // 1024))
    print(f"one thread, batch 1, median of 40 interleaved rounds; {machine()}\n")
    table(("model", "input", "file", "ms", "times float", "KiB"), rows)
    print(f"\n{peak_memory()}")


if __name__ == "__main__":
    main()
