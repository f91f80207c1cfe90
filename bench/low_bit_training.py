"""How near do four bits come to the float model after the same training? resnet20 on CIFAR-10, one thread.

Float, the float model after the same training, quantized, and trained through its rounding; by labels, on the same training
images with the same schedule. Accuracy on the 10,000 test images, and how often an answer is that of the trained float model,
the teacher. `--validate` measures on 2,000 other training images instead: settings are chosen there, never on the test images.

    python bench/low_bit_training.py [--validate] [--recipe R] [--methods M,M] [--samples N] [--epochs N] [--rate R]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from time import perf_counter

import torch
from common import data_folder, machine, peak_memory, table
from torch import Tensor

from exactq import flow
from exactq.datasets.splits import Split
from exactq.graphs.programs import program
from exactq.sources.resolve import resolve
from exactq.traces import Program, walk
from exactq.training.courses import Course
from exactq.training.methods import METHODS, method_named
from exactq.training.objectives import LABELS
from exactq.training.tuning import Moment, tune
from exactq.training.unquantized import unquantized


def main() -> None:
    """Print a row for each model."""
    read = argparse.ArgumentParser()
    read.add_argument("--validate", action="store_true")
    read.add_argument("--recipe", default="w4a4")
    read.add_argument("--methods", default="straight_through,lsq")
    read.add_argument("--samples", type=int, default=8192)
    read.add_argument("--epochs", type=int, default=5)
    read.add_argument("--rate", type=float, default=3e-3)
    read.add_argument("--batch", type=int, default=64)
    asked = read.parse_args()
    torch.set_num_threads(1)
    source = resolve("resnet20", weights=str(data_folder() / "models" / "resnet20-12fca82f.th"), batch_size=250)
    graph = flow.prepare(source.module, source.example)
    made = flow.quantize_graph(graph, calibration=(b.inputs for b in source.dataset.calibration), recipe=asked.recipe)
    shuffled = source.dataset.train.shuffled(0)  # type: ignore[union-attr]
    train = shuffled.first(asked.samples)
    others = replace(shuffled, order=shuffled.order[asked.samples : asked.samples + 2000])
    course = Course(epochs=asked.epochs, rate=asked.rate, batch=asked.batch)
    judged: Split = others if asked.validate else source.dataset.evaluation
    print(f"{asked.recipe}, {asked.samples} training images, {course}; {machine()}", flush=True)
    answers = {"float": _answers(program(graph), judged), "quantized": _answers(made.program(), judged)}
    facts = {"float": "", "quantized": ""}
    for name in ("unquantized", *asked.methods.split(",")):
        method = unquantized if name not in METHODS else method_named(name, made.lower)
        start = perf_counter()
        tuned = tune(made, train, course=course, objective=LABELS, method=method, progress=_tell(name))
        facts[name] = f"{perf_counter() - start:.0f} s, epoch {tuned.best}"
        trained = program(tuned.quantized.float_graph) if name == "unquantized" else tuned.quantized.program()
        answers[name] = _answers(trained, judged)
        _show(answers, facts, torch.cat([b.labels for b in judged if b.labels is not None]))
    print(f"\n{peak_memory()}", flush=True)


def _show(answers: Mapping[str, Tensor], facts: Mapping[str, str], labels: Tensor) -> None:
    """What is known so far: a row for each model."""
    teacher = answers["unquantized"]
    rows = []
    for name, answer in answers.items():
        shares = (float((answer == right).double().mean()) for right in (labels, teacher))
        rows.append((name, *(f"{share:.4f}" for share in shares), facts[name]))
    print(f"\n{len(labels)} images judge\n")
    table(("model", "accuracy", "answers as the float model trained alike", "training"), rows)
    print(flush=True)


def _answers(made: Program, judged: Split) -> Tensor:
    """The class that a model says for each sample."""
    with torch.no_grad():
        return torch.cat([walk(made, batch.inputs)[0].argmax(1) for batch in judged])


def _tell(name: str) -> Callable[[Moment], None]:
    def told(moment: Moment) -> None:
        if moment.score is not None:
            print(f"  {name} epoch {moment.epoch}: loss {moment.loss:.4f}, held out {moment.score:.4f}", flush=True)

    return told


if __name__ == "__main__":
    main()
