"""What does training on the runtime's own integers cost? A step of exact training beside one of fake quantization, one thread.

resnet20 with trained CIFAR-10 weights, a batch of 64. First the outputs of the exact forward are held against the emulator of
what would be deployed: they must be equal, and only then times are worth something.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from common import data_folder, interleaved, machine, peak_memory, table

from exactq import flow
from exactq.sources.resolve import resolve
from exactq.traces import walk
from exactq.training.methods import METHODS, method_named
from exactq.training.simulation import Simulation, State
from exactq.training.tuning import deployed, start_of

BASE = "straight_through"


def main() -> None:
    """Print milliseconds of each way for each target, and the ratios to fake quantization in the same process."""
    torch.set_num_threads(1)
    source = resolve("resnet20", weights=str(data_folder() / "models" / "resnet20-12fca82f.th"), calibration=64)
    graph = flow.prepare(source.module, source.example)
    images = [b.inputs for b in source.dataset.calibration]
    inputs = next(iter(source.dataset.evaluation)).inputs
    rows = []
    for target in sys.argv[1:] or ["onnxruntime", "fbgemm"]:
        made = flow.quantize_graph(graph, calibration=images, target=target)
        runs: dict[str, Callable[[], object]] = {}
        for name in METHODS:
            simulation = method_named(name, made.lower)(start_of(made))
            state = simulation.settle(simulation.begin())
            if name.startswith("exact"):
                with torch.no_grad():
                    emulated = walk(deployed(made, simulation.finish(state)).program(), inputs)
                assert torch.equal(simulation.forward(state, inputs).outputs[0], emulated[0])
            runs[f"{name} forward"] = _forward(simulation, state, inputs)
            runs[f"{name} forward and backward"] = _both(simulation, state, inputs)
        times = interleaved(runs, rounds=11)
        for name, ms in times.items():
            way, _, what = name.partition(" ")
            rows.append((target, way, what, f"{ms:.0f}", f"{ms / times[f'{BASE} {what}']:.2f}"))
    print(f"resnet20, batch {len(inputs[0])}; {machine()}\n")
    table(("target", "way", "what", "ms", "times fake quantization"), rows)
    print(f"\n{peak_memory()}")


def _forward(simulation: Simulation, state: State, inputs: tuple[torch.Tensor, ...]) -> Callable[[], object]:
    """The forward pass of a training step, which a backward pass can follow."""
    return lambda: simulation.forward(state, inputs)


def _both(simulation: Simulation, state: State, inputs: tuple[torch.Tensor, ...]) -> Callable[[], object]:
    return lambda: simulation.forward(state, inputs).outputs[0].square().sum().backward()


if __name__ == "__main__":
    main()
