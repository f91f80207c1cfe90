"""What does quantizing the bias cost? Each engine's answers beside its arithmetic with real biases and with int32 ones.

A convolution alone, convolution-relu-convolution, and resnet20 with trained CIFAR-10 weights and its accuracy. QNNPACK rounds
biases to int32, the other engines keep them in float32; the arithmetic that an engine does not have is its own with the bias
held the other way. Differences are codes of the real engine less those of the arithmetic.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

import torch
from common import data_folder, machine, peak_memory, table
from torch import Tensor, nn

import exactq
from exactq import flow
from exactq.graphs.qdq import CODES
from exactq.kernels.anatomy import Held
from exactq.sources.resolve import resolve
from exactq.targets import TARGETS
from exactq.targets.pytorch.lower import lower
from exactq.targets.pytorch.rules import ENGINES
from exactq.traces import Step, trace, walk

HELD: tuple[Held, ...] = ("float32", "int32")

GRAPHS = "fbgemm"
"""The target whose plan the quantized graph follows: one for all engines, with real biases, which QNNPACK rounds itself."""


def single() -> nn.Module:
    """One convolution of 16 to 32 channels with random weights."""
    return nn.Conv2d(16, 32, 3, padding=1)


def several() -> nn.Module:
    """Two convolutions and a relu between them, random weights."""
    return nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 3, padding=1))


def random_networks() -> None:
    """Print the difference of the outputs of both networks, on each engine, with real and with int32 biases."""
    rows = []
    for name, make in (("conv", single), ("conv-relu-conv", several)):
        torch.manual_seed(0)
        model, x = make().eval(), torch.randn(8, 16, 64, 64)
        made = exactq.quantize(model, (x,), calibration=[x], target=GRAPHS)
        output = f"{[*made.grids][-1]}{CODES}"
        for engine in ENGINES:
            target = TARGETS[engine]
            answer = target.open(target.emit(made.graph)).trace((x,))[output]
            for held in HELD:
                program = lower(engine, made.graph, target.detect_isa(), biases=held)
                off = (answer.int() - trace(program, (x,), (output,))[output].int()).double()
                own = "its own" if (held == "int32") == (engine == "qnnpack") else ""
                figures = (f"{int(off.sum())}", f"{off.mean():.2e}", f"{int(off.max())}", f"{int(off.min())}")
                rows.append((name, engine, held, own, *figures, f"{(off != 0).double().mean():.2e}"))
    columns = ("network", "engine", "bias", "", "sum", "mean", "max", "min", "share that differs")
    table(columns, rows)


@dataclass
class Count:
    """What two arithmetics gave on the same images: right answers, codes that differ, and the largest difference."""

    right: dict[str, int] = field(default_factory=lambda: dict.fromkeys(HELD, 0))
    codes: int = 0
    differ: int = 0
    outputs: int = 0
    logits: int = 0
    largest: int = 0


def trained_network(images: int) -> None:
    """Print the accuracy of resnet20 with both kinds of bias on each engine, and how many integers they change."""
    weights = data_folder() / "models" / "resnet20-12fca82f.th"
    source = resolve("resnet20", weights=str(weights), batch_size=250)
    graph = flow.prepare(source.module, source.example)
    calibration = [b.inputs for b in source.dataset.calibration]
    made = flow.quantize_graph(graph, calibration=calibration, target=GRAPHS)
    rows, total = [], 0
    for engine in ENGINES:
        programs = {held: lower(engine, made.graph, TARGETS[engine].detect_isa(), biases=held) for held in HELD}
        found, total = Count(), 0
        for batch in source.dataset.evaluation.first(images):
            assert batch.labels is not None
            kept: dict[str, list[Tensor]] = {}
            for held, program in programs.items():
                kept[held] = []

                def see(step: Step, value: Tensor, into: list[Tensor] = kept[held]) -> None:
                    if step.grid is not None:
                        into.append(value.to(torch.uint8))

                with torch.no_grad():
                    (logits,) = walk(program, batch.inputs, see)
                found.right[held] += int((logits.argmax(1) == batch.labels).sum())
            for a, b in zip(*kept.values(), strict=True):
                off = (a.int() - b.int()).abs()
                found.codes, found.differ = found.codes + off.numel(), found.differ + int((off != 0).sum())
                found.largest = max(found.largest, int(off.max()))
            last = [codes[-1].int() for codes in kept.values()]
            found.outputs, found.logits = found.outputs + last[0].numel(), found.logits + int((last[0] != last[1]).sum())
            total += len(batch)
        accuracies = [f"{found.right[held] / total:.4f}" for held in HELD]
        shares = [f"{found.differ / found.codes:.2e}", f"{found.logits / found.outputs:.2e}"]
        rows.append((engine, *accuracies, *shares, found.largest))
    print(f"\nresnet20, trained on CIFAR-10, {total} test images; float32 and int32 biases\n")
    table(("engine", "accuracy float32", "accuracy int32", "codes that differ", "logits that differ", "largest LSB"), rows)


def main() -> None:
    """Print both tables; the second needs the data and the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000, help="how many test images, 0 for none (default 10000)")
    images = parser.parse_args().images
    torch.set_num_threads(1)
    print(f"{machine()}\n")
    random_networks()
    if images:
        trained_network(images)
    print(f"\n{peak_memory()}")


if __name__ == "__main__":
    main()
