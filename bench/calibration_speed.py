"""What does calibrating cost beyond the forward passes that it makes? Calibration plus quantization beside the model itself.

3×224×224, random weights, 64 images in batches of 16, one thread. The baseline is the `nn.Module` that was given, in eval mode
under `torch.inference_mode()`, on the same batches in the same process; rounds are interleaved, medians compared.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from common import interleaved, machine, peak_memory, table

from exactq import flow
from exactq.calibration import OBSERVERS
from exactq.graphs.programs import program
from exactq.plans.recipes import Recipe
from exactq.sources.resolve import resolve
from exactq.traces import walk

IMAGES, BATCH, ROUNDS = 64, 16, 3
MOST = 1.5
"""What the default recipe may take, in times of the forward passes."""


def main() -> None:
    """Print seconds and the ratio to the forward passes for each model named on the command line."""
    torch.set_num_threads(1)
    rows = []
    for model in sys.argv[1:] or ["resnet18", "mobilenetv2"]:
        times = interleaved(jobs(model), rounds=ROUNDS)
        base = times["module, inference mode"]
        for name, ms in times.items():
            verdict = f"{'within' if ms <= MOST * base else 'beyond'} {MOST}" if name == "quantize, minmax" else ""
            rows.append((model, name, f"{ms / 1000:.2f}", f"{ms / base:.2f}", verdict))
    print(f"{IMAGES} images 3×224×224 in batches of {BATCH}, median of {ROUNDS} rounds; {machine()}\n")
    table(("model", "what runs", "s", "times the module", ""), rows)
    print(f"\n{peak_memory()}")


def jobs(model: str) -> dict[str, Callable[[], object]]:
    """What runs: the module, the float graph, and quantization with each observer, over the same batches."""
    source = resolve(model, random_weights=True, calibration=IMAGES, batch_size=BATCH, input_shape="1,3,224,224")
    batches = [batch.inputs for batch in source.dataset.calibration]
    module, graph = source.module.eval(), flow.prepare(source.module, source.example)
    steps = program(graph)

    def forward() -> None:
        with torch.inference_mode():
            for inputs in batches:
                module(*inputs)

    def walked() -> None:
        with torch.no_grad():
            for inputs in batches:
                walk(steps, inputs)

    def quantized(observer: str) -> Callable[[], object]:
        recipe = Recipe("w8a8", activation_observer=observer)
        return lambda: flow.quantize_graph(graph, calibration=batches, recipe=recipe)

    found: dict[str, Callable[[], object]] = {"module, inference mode": forward, "float graph, walked": walked}
    return found | {f"quantize, {observer}": quantized(observer) for observer in OBSERVERS}


if __name__ == "__main__":
    main()
