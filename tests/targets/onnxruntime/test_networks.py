"""Networks that exist, and what another instruction set answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.golden.onnxruntime.networks import HERE, RECIPES, SHAPES, digest, images, quantized
from tests.targets.networks import EXAMPLES, WHOLE, Example, batch
from tests.targets.networks import quantized as network

import exactq
from exactq.datasets.cifar10 import cifar10
from exactq.graphs.qdq import CODES
from exactq.kernels.mlas import ISAS
from exactq.models.catalog import MODELS
from exactq.plans.plan import Same
from exactq.sources import weights
from exactq.targets.onnxruntime import ONNXRUNTIME
from exactq.traces import trace

RESNETS = ["resnet20-full", pytest.param("resnet20-portable", marks=pytest.mark.slow)]


def golden(isa: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / f"networks-{isa}.json").read_text(encoding="utf-8"))
    assert found["isa"] == isa
    return found["networks"]  # type: ignore[no-any-return]


def predicted(key: str, isa: str) -> dict[str, list[Any]]:
    """The emulator's codes on the golden inputs, on the golden grids."""
    name, recipe = key.split("-")
    grids = {value: tuple(grid) for value, grid in golden(isa)[key]["grids"].items()}
    made = quantized(name, recipe, grids)
    with torch.no_grad():
        codes = trace(made.program(isa), (images(name),))
    return {value: digest(tensor) for value, tensor in codes.items() if value.endswith(CODES) and tensor.dtype == torch.uint8}


@pytest.mark.parametrize("key", [*(f"{name}-{recipe}" for name in ("simplecnn", "mobilenet") for recipe in RECIPES), *RESNETS])
@pytest.mark.parametrize("isa", ISAS)
def test_the_emulator_of_each_instruction_set_gives_what_the_runtime_gave_there(isa: str, key: str) -> None:
    assert predicted(key, isa) == golden(isa)[key]["tensors"]


def test_full_range_weights_give_other_integers_without_vnni_and_pair_safe_weights_the_same() -> None:
    avx2, vnni = golden("avx2"), golden("avx512vnni")
    for name in SHAPES:
        full, portable = f"{name}-full", f"{name}-portable"
        assert avx2[full]["grids"] == vnni[full]["grids"]
        differ = [t for t in vnni[full]["tensors"] if avx2[full]["tensors"][t] != vnni[full]["tensors"][t]]
        assert differ, name
        assert avx2[portable] == vnni[portable]


NARROW = [e for e in WHOLE if e.integers]


@pytest.mark.runtime
@pytest.mark.parametrize(
    "example", [e if e in NARROW[:4] else pytest.param(e, marks=pytest.mark.slow) for e in NARROW], ids=lambda e: e.name
)
def test_codes_of_four_bits_are_bounded_in_the_file_and_verified(example: Example) -> None:
    made = network(example, recipe="w4a4")
    verdict = exactq.verify(made, [batch(example, size, size, 1.5) for size in (1, 2, 64)], inputs=67)
    assert (verdict.mismatches, verdict.unverified) == (0, ()), verdict
    narrow = [name for name, at in made.grids.items() if not at.format.signed and at.format.hi == 15]
    moved = [n for n in narrow if isinstance(made.plan.slots[n], Same)]
    assert verdict.operators.get("Clip", 0) == len(narrow) - len(moved)


@pytest.mark.runtime
@pytest.mark.slow
@pytest.mark.parametrize("operator", ONNXRUNTIME.ability("avx2").operators)
def test_every_kernel_reads_and_makes_codes_of_four_bits(operator: str) -> None:
    for example in EXAMPLES[operator]:
        verdict = exactq.verify(network(example, recipe="w4a4"), [batch(example, 64, 3, 1.5)], inputs=64)
        assert verdict.mismatches == 0, (example.name, verdict)


@pytest.mark.runtime
def test_the_golden_networks_are_verified_on_this_machine() -> None:
    for name in ("simplecnn", "mobilenet"):
        verdict = exactq.verify(quantized(name, "full"), [(images(name, 5, 4),)])
        assert verdict.equal
        assert verdict.unverified == ()


@pytest.mark.runtime
@pytest.mark.parametrize("recipe", ["w8a8", pytest.param("portable", marks=pytest.mark.slow)])
def test_the_trained_resnet20_is_integers_from_border_to_border(data: Path, recipe: str) -> None:
    file = data / "models" / "resnet20-12fca82f.th"
    if not file.is_file() or not (data / "cifar10").is_dir():
        pytest.skip("models/resnet20-12fca82f.th or cifar10 is not in EXACTQ_DATA")
    model = MODELS["resnet20"].factory().eval()
    weights.fill(model, weights.read(file), str(file))
    dataset = cifar10(str(data / "cifar10"), calibration=64, seed=0)
    calibration = [batch.inputs for batch in dataset.calibration.first(64)]
    made = exactq.quantize(model, (torch.randn(2, 3, 32, 32),), calibration=calibration, recipe=recipe)
    verdict = exactq.verify(made, (batch.inputs for batch in dataset.evaluation.first(64)), inputs=64)
    assert verdict.equal
    assert (verdict.inputs, verdict.mismatches, verdict.unverified) == (64, 0, ())
    moves = {"Slice", "Pad", "Reshape", "Transpose"}
    assert {k: n for k, n in verdict.operators.items() if k not in moves} == {
        "QuantizeLinear": 1,
        "QLinearConv": 19,
        "QLinearAdd": 9,
        "QLinearGlobalAveragePool": 1,
        "QGemm": 1,
        "DequantizeLinear": 1,
    }
    assert (verdict.operators["Slice"], verdict.operators["Pad"]) == (4, 2)
    assert made.coverage() == 1.0


def test_the_versions_of_the_golden_files_are_told() -> None:
    for isa in ISAS:
        header = json.loads((HERE / f"networks-{isa}.json").read_text(encoding="utf-8"))
        assert header["runtime"].startswith("onnxruntime ")
        assert header["command"].startswith("python -m tests.golden")
    assert set(ISAS) == set(ONNXRUNTIME.isas)
