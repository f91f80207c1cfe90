"""The explanation comes to the emulator's code, for every kernel, on both instruction sets, on random and extreme elements.

Every explanation compares its code with the emulator's and raises where they differ; here the figures must add up, too.
EXACTQ_SEED=N draws other networks and elements.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable

import pytest
import torch
from tests.targets.drawn import drawn
from tests.targets.networks import EXAMPLES, WHOLE, Example, batch, quantized
from torch import Tensor

from exactq.explanation import Explanation, explain_many
from exactq.explanation.wording import WIDTH
from exactq.kernels.anatomy import place_of
from exactq.targets import TARGETS
from exactq.traces import Step

SEED = int(os.environ.get("EXACTQ_SEED", "0"))
FAST = {
    "conv2d grouped",
    "linear of rows",
    "max_pool2d of 2",
    "avg_pool2d of 2",
    "matmul of rows",
    "cat of channels",
    "leaky_relu",
    "permute",
    "slice",
    "pad with a value",
    "gated",
    "several",
}
"""What always runs: each kind of anatomy between others. The rest of the examples are slow ones."""


ENGINES_FAST = {
    "fbgemm": {"conv2d depthwise", "gated"},
    "inductor": {"mean of images", "leaky_relu", "several"},
    "onednn": {"conv2d grouped", "mean of images", "resnet", "several"},
    "qnnpack": {"linear of rows", "hardswish", "several"},
}
"""The same for PyTorch's engines, each with what is its own."""


def marked(target: str, example: Example) -> object:
    fast = FAST if target == "onnxruntime" else ENGINES_FAST.get(target, ())
    return pytest.param(
        target, example, id=f"{target}-{example.name}", marks=() if example.name in fast else (pytest.mark.slow,)
    )


ALL = [marked(t, e) for t in TARGETS for e in (*(e for several in EXAMPLES.values() for e in several), *WHOLE)]


def some(count: int, seed: int) -> Callable[..., Iterable[tuple[int, ...]]]:
    """A choice of elements: corners, the largest and the smallest code, and some at random."""
    chance = random.Random(seed)

    def choose(step: Step, codes: Tensor, reference: Tensor) -> Iterable[tuple[int, ...]]:
        flat = codes.flatten().to(torch.int32)
        places = {0, len(flat) - 1, int(flat.argmax()), int(flat.argmin())}
        places |= {chance.randrange(len(flat)) for _ in range(count)}
        return [place_of(i, tuple(codes.shape)) for i in sorted(places)]

    return choose


def adds_up(found: Explanation) -> None:
    """Shown terms and the rest are the sum; sum, saturation and bias are the accumulator; the last code is the code."""
    steps = {step.name: step for step in found.steps}
    for name in ("products", "saturation"):
        if name in steps and steps[name].rows:
            assert sum(row["term"] for row in steps[name].rows) == steps[name].value
    if found.kernel == "mlas.global_average_pool":
        assert sum(row["term"] for row in steps["sum"].rows) == steps["sum"].value
    if "accumulator" in steps:
        held = steps["bias"].values["held"]
        assert held == (None if held is None else "int32" if found.target.startswith(("onnxruntime", "qnnpack")) else "float32")
        parts = [steps[n].value for n in ("products", "saturation", "bias") if n in steps and (n != "bias" or held == "int32")]
        exact = sum(int(part) for part in parts)
        assert steps["accumulator"].values["exact"] == exact
        assert (int(steps["accumulator"].value) - exact) % 2**32 == 0
        assert steps["zero points"].values["raw"] - steps["zero points"].value == steps["products"].value
    assert found.real == steps["real"].value
    assert all(len(line) <= WIDTH for line in str(found).splitlines())


@pytest.mark.parametrize(("target", "example"), ALL)
def test_the_explanation_of_an_element_is_the_emulators_code(target: str, example: Example) -> None:
    made = quantized(example, target=target)
    extreme = tuple(x.sign() * 50 for x in batch(example, 2, 4))
    for isa in made.target.isas:
        for inputs in (batch(example, 3, SEED + 3, 1.5), extreme):
            found = list(explain_many(made, inputs, some(3, SEED), isa=isa))
            assert len(found) >= 4 or made.coverage() == 0  # inductor has no convolution of three axes
            for one in found:
                adds_up(one)


@pytest.mark.parametrize("example", WHOLE[3:5], ids=lambda e: e.name)
def test_codes_that_are_bounded_behind_the_kernel_are_explained_to_the_end(example: Example) -> None:
    made = quantized(example, recipe="w4a4")
    clipped = 0
    for inputs in (batch(example, 3, SEED + 3, 1.5), tuple(x.sign() * 50 for x in batch(example, 2, 4))):
        for one in explain_many(made, inputs, some(6, SEED)):
            adds_up(one)
            clips = [step for step in one.steps if step.name == "clip"]
            clipped += sum("becomes 15" in step.text for step in clips)
    assert clipped > 0


@pytest.mark.parametrize(
    ("target", "seed"),
    [
        pytest.param(t, seed, marks=() if t in ("onnxruntime", "fbgemm") and seed % 1000 < 3 else (pytest.mark.slow,))
        for t in TARGETS
        for seed in range(SEED * 1000, SEED * 1000 + int(os.environ.get("EXACTQ_NETWORKS", "8")))
    ],
)
def test_the_explanation_of_a_drawn_network_is_the_emulators_code(target: str, seed: int) -> None:
    made, batches = drawn(seed, target)
    for isa in made.target.isas:
        for found in explain_many(made, batches[2], some(4, seed), isa=isa):
            adds_up(found)
