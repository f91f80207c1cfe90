"""How much of what low-bit weights cost does fine-tuning win back? Float, quantized, tuned; uint8 activations, nearest codes.

Digits: all 1,437 training images, 10 epochs. CIFAR-10 (trained weights, `--cifar`): 5,000 training images, 1 epoch. Course and
objective are the defaults; no test image is seen in training. Accuracies are those of the emulator, whose integers
`exactq.verify` proves to be the runtime's.
"""

from __future__ import annotations

import sys
from time import perf_counter

import torch
from common import data_folder, machine, peak_memory, table

from exactq import flow
from exactq.datasets.splits import Batch, Split
from exactq.fidelity import Outputs
from exactq.graphs.programs import program
from exactq.numerics.formats import INT2, INT3, INT4, Format
from exactq.plans.recipes import Recipe
from exactq.sources.resolve import Source, resolve
from exactq.traces import Program, walk
from exactq.training.courses import Course
from exactq.training.tuning import tune
from exactq.verification import verify


def main() -> None:
    """Print a row for each model and width of weights."""
    torch.set_num_threads(1)
    rows = []
    if "--cifar" in sys.argv:
        weights = data_folder() / "models" / "resnet20-12fca82f.th"
        source = resolve("resnet20", weights=str(weights), batch_size=250)
        for fmt in (INT4, INT3):
            rows.append(row(source, fmt.narrow, source.dataset.train.shuffled(0).first(5000), Course(epochs=1)))
    else:
        for model in ("simplecnn", "resnet20"):
            source = resolve(model)
            rows += [row(source, fmt.narrow, source.dataset.train, Course()) for fmt in (INT4, INT3, INT2)]
    print(f"{machine()}\n")
    table(
        (
            "model",
            "data",
            "recipe",
            "float",
            "PTQ",
            "QAT",
            "won back",
            "PTQ dB",
            "QAT dB",
            "epoch",
            "ms a step",
            "mismatches",
            "s",
        ),
        rows,
    )
    print(f"\n{peak_memory()}")


def row(source: Source, fmt: Format, train: Split | None, course: Course) -> tuple[object, ...]:
    """One model at one width, quantized and tuned."""
    assert train is not None
    graph = flow.prepare(source.module, source.example)
    recipe = Recipe(f"w{fmt.bits}a8", weights=fmt)
    made = flow.quantize_graph(graph, calibration=(b.inputs for b in source.dataset.calibration), recipe=recipe)
    steps: list[int] = []
    start = perf_counter()
    tuned = tune(made, train, course=course, progress=lambda moment: steps.append(moment.steps))
    seconds = perf_counter() - start
    right, ratios = compare(program(graph), [made.program(), tuned.quantized.program()], source.dataset.evaluation)
    verdict = verify(tuned.quantized, (b.inputs for b in source.dataset.evaluation), inputs=64)
    lost = right[0] - right[1]
    won = f"{(right[2] - right[1]) / lost:.0%}" if lost > 0 else "—"
    accuracies = (f"{accuracy:.4f}" for accuracy in right)
    decibels = (f"{ratio:.1f}" for ratio in ratios)
    last = (
        f"{tuned.best} of {course.epochs}",
        f"{1000 * seconds / steps[-1]:.0f}",
        f"{verdict.mismatches} of {verdict.elements}",
    )
    return source.label, source.dataset.name, recipe.name, *accuracies, won, *decibels, *last, f"{seconds:.0f}"


def compare(reference: Program, models: list[Program], batches: Split) -> tuple[list[float], list[float]]:
    """The accuracy of the reference and of each model, and each model's signal-to-noise ratio in dB."""
    right, samples, outputs = [0] * (len(models) + 1), 0, [Outputs() for _ in models]
    with torch.no_grad():
        for batch in batches:
            answers = [walk(model, batch.inputs) for model in (reference, *models)]
            right = [n + correct(answer[0], batch) for n, answer in zip(right, answers, strict=True)]
            samples += len(batch)
            for found, answer in zip(outputs, answers[1:], strict=True):
                found.add(answers[0], answer)
    return [n / samples for n in right], [found.ratio.decibels for found in outputs]


def correct(scores: torch.Tensor, batch: Batch) -> int:
    """How many samples have their largest score at their label."""
    return int((scores.argmax(1) == batch.labels).sum())


if __name__ == "__main__":
    main()
