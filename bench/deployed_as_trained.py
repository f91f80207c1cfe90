"""Does the runtime answer what training saw? resnet20 after exact training, all 10,000 CIFAR-10 test images, bit for bit.

The last evaluation forward of training is kept, before anything is exported; the file is then loaded by the real runtime. A
straight-through training, whose forward is fake quantization, stands beside it.

    python bench/deployed_as_trained.py [--images N] [--samples N]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from common import data_folder, machine, peak_memory, table
from torch import Tensor

from exactq import flow
from exactq.metrics import Run
from exactq.quantized import Quantized
from exactq.sources.resolve import Source, resolve
from exactq.training.courses import Course
from exactq.training.methods import method_named
from exactq.training.tuning import tune

CASES = (
    ("onnxruntime", "w8a8", "straight_through"),
    ("onnxruntime", "w8a8", "exact"),
    ("onnxruntime", "w4a4", "exact_lsq"),
    ("fbgemm", "w8a8", "straight_through"),
    ("fbgemm", "w8a8", "exact"),
)


def main() -> None:
    """Print a row for each case."""
    read = argparse.ArgumentParser()
    read.add_argument("--images", type=int, default=10_000)
    read.add_argument("--samples", type=int, default=1024)
    asked = read.parse_args()
    torch.set_num_threads(1)
    source = resolve("resnet20", weights=str(data_folder() / "models" / "resnet20-12fca82f.th"), batch_size=250)
    rows = [_row(source, *case, asked.images, asked.samples) for case in CASES]
    print(f"resnet20, {asked.samples} training images, 1 epoch; {machine()}\n")
    columns = (
        "target",
        "recipe",
        "method",
        "images",
        "outputs",
        "equal to the runtime's",
        "answers equal",
        "largest difference",
    )
    table((*columns, "accuracy"), rows)
    print(f"\n{peak_memory()}", flush=True)


def _row(source: Source, target: str, recipe: str, method: str, images: int, samples: int) -> tuple[object, ...]:
    graph = flow.prepare(source.module, source.example)
    made = flow.quantize_graph(graph, calibration=(b.inputs for b in source.dataset.calibration), target=target, recipe=recipe)
    judged = source.dataset.evaluation.first(images)
    seen: list[list[Tensor]] = []

    def evaluate(run: Run) -> float:
        # The model as it came is not of interest; the epoch is taken as the better one, unseen.
        seen.append([run(b.inputs)[0] for b in judged] if seen else [])
        return float(len(seen))

    course = Course(epochs=1, held_out=0.0)
    train = source.dataset.train.shuffled(0).first(samples)  # type: ignore[union-attr]
    tuned = tune(made, train, course=course, method=method_named(method, made.lower), evaluate=evaluate).quantized
    trained = torch.cat(seen[-1])
    answers, right = _answers(tuned, [b.inputs for b in judged]), 0
    labels = torch.cat([b.labels for b in judged if b.labels is not None])
    right = int((answers.argmax(1) == labels).sum())
    equal, same = int((trained == answers).sum()), int((trained.argmax(1) == answers.argmax(1)).sum())
    print(f"  {target} {recipe} {method}: {equal} of {answers.numel()} equal", flush=True)
    worst = float((trained - answers).abs().max())
    facts = (len(answers), answers.numel(), equal, same, f"{worst:.3g}", f"{right / len(answers):.4f}")
    return target, recipe, method, *facts


def _answers(made: Quantized, batches: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """What the real runtime answers."""
    run = made.target.timed(made.artifact(), 1)
    return torch.cat([run(inputs)[0] for inputs in batches])


if __name__ == "__main__":
    main()
