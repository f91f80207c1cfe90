"""How long does one explained integer take? resnet18 at 224×224, random weights, lowering included, one thread.

On ONNX Runtime's kernels, or on those of the target that is named on the command line.
"""

from __future__ import annotations

import sys

import torch
from common import interleaved, machine, peak_memory, table

import exactq
from exactq.explanation import explain, explain_biases
from exactq.models.catalog import build, model_named
from exactq.traces import walk

PLACES = {"conv1": (0, 3, 5, 5), "layer1.0.conv1": (0, 3, 5, 5), "layer4.1.conv2": (0, 3, 5, 5), "fc": (0, 7)}


def main() -> None:
    """Print milliseconds of each and the ratio to lowering alone."""
    torch.set_num_threads(1)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    target = sys.argv[1] if len(sys.argv) > 1 else "onnxruntime@avx512vnni"
    made = exactq.quantize(build(model_named("resnet18")), (x,), calibration=[x], target=target)
    runs = {"lowering alone": made.program, "lowering and a whole walk": lambda: walk(made.program(), (x,))}
    for node, at in PLACES.items():
        runs[f"explain {node}"] = lambda node=node, at=at: explain(made, node, at, (x,))
    runs["explain --bias"] = lambda: explain_biases(made)
    with torch.no_grad():
        times = interleaved(runs, rounds=7)
    print(f"resnet18 on {target}, 1×3×224×224; {machine()}\n")
    base = times["lowering alone"]
    table(("what", "ms", "times lowering"), [(n, f"{ms:.0f}", f"{ms / base:.2f}") for n, ms in times.items()])
    print(f"\n{peak_memory()}")


if __name__ == "__main__":
    main()
