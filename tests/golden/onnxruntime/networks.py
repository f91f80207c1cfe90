"""Ask ONNX Runtime whole networks again, on this machine and, under user-mode emulation, on AVX2 without VNNI.

    python -m tests.golden.onnxruntime.networks

Writes `networks-<isa>.json`: what was asked (runtime, isa, seed, command, the grids of each network) and for each tensor of
codes of the optimised session its SHA-256 and its first codes. Weights and inputs are drawn as integers and grids are given,
so that every machine makes the same networks.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from tests.targets.networks import mobilenet
from torch import Tensor, nn

import exactq
from exactq.models.catalog import MODELS
from exactq.numerics.formats import UINT8
from exactq.plans.plan import Fixed, Own
from exactq.quantized import Quantized
from exactq.targets import TARGETS

HERE = Path(__file__).parent
SEED, IMAGES = 20261, 8
COMMAND = "python -m tests.golden.onnxruntime.networks"
EMULATED = ("qemu-x86_64", "-cpu", "Haswell")
SHAPES = {"simplecnn": (1, 8, 8), "resnet20": (3, 32, 32), "mobilenet": (3, 16, 16)}
RECIPES = {"full": "w8a8", "portable": "portable"}
"""Weights over the whole of int8, some of whose pairs saturate on AVX2, and weights of which none does."""


def network(name: str) -> nn.Module:
    """The network with weights k·2⁻ⁿ, k drawn from −127..127."""
    generator = torch.Generator().manual_seed(SEED)
    model = (mobilenet() if name == "mobilenet" else MODELS[name].factory()).eval()
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]  # normalisation stays the identity
    for parameter in (p for layer in layers for p in layer.parameters()):
        codes = torch.randint(-127, 128, parameter.shape, generator=generator)
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 64
        parameter.data = codes * 2.0 ** round(float(np.log2(np.sqrt(6 / fan_in) / 127)))
    return model


def images(name: str, seed: int = SEED, count: int = IMAGES) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, (count, *SHAPES[name]), generator=generator) / 64


def quantized(name: str, recipe: str, grids: Mapping[str, tuple[float, int]] | None = None) -> Quantized:
    """The network on the grids given, or on those of a calibration; its weights are those of a machine that never saturates."""
    x = images(name, SEED + 1, 32)
    options = {"target": "onnxruntime@avx512vnni", "recipe": RECIPES[recipe]}
    if grids is None:
        return exactq.quantize(network(name), (x[:2],), calibration=[(x,)], **options)
    plan = exactq.plan(network(name), (x[:2],), **options)
    slots = {
        value: Fixed(UINT8, *grids[value], reason="as it was") if value in grids and isinstance(slot, Own) else slot
        for value, slot in plan.slots.items()
    }
    given = type(plan)(plan.target, plan.isa, plan.recipe, slots)
    return exactq.quantize(network(name), (x[:2],), calibration=[(x[:2],)], plan=given)


def digest(codes: Tensor) -> list[Any]:
    """Shape, SHA-256 and the first eight codes of a tensor."""
    array = np.ascontiguousarray(codes.numpy())
    return [list(array.shape), hashlib.sha256(array.tobytes()).hexdigest(), array.flat[:8].tolist()]


def own_grids(made: Quantized) -> dict[str, tuple[float, int]]:
    """The grid of each value that has one of its own and is no constant."""
    own = [name for name, slot in made.plan.slots.items() if isinstance(slot, Own) and name not in made.float_graph.constants]
    return {name: (float(made.grids[name].scale), int(made.grids[name].zero)) for name in own}


def answers(folder: Path, name: str) -> dict[str, Tensor]:
    """The codes of a network by the emulator's names, from what `answer.py` left."""
    from exactq.targets.onnxruntime import tracing

    held = tracing.find(onnx.load(folder / f"{name}.onnx"), onnx.load(folder / f"{name}.optimized.onnx"))
    with np.load(folder / f"{name}.answers.npz") as stored:
        found = {str(tensor): torch.from_numpy(stored[str(n)]) for n, tensor in enumerate(stored["names"])}
    views = {n: (found[v.tensor], [v.axes.index(a) for a in range(len(v.axes))]) for n, v in held.items() if v.tensor in found}
    return {n: value.permute(order) for n, (value, order) in views.items() if value.dtype == torch.uint8}


def main() -> None:
    detected = TARGETS["onnxruntime"].detect_isa()
    for isa, prefix in {"avx2": EMULATED if detected != "avx2" else (), detected: ()}.items():
        told: dict[str, Any] = {}
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            made = {f"{name}-{recipe}": quantized(name, recipe) for name in SHAPES for recipe in RECIPES}
            for key, model in made.items():
                (folder / f"{key}.onnx").write_bytes(model.artifact())
                np.savez(folder / f"{key}.npz", **{"0": images(key.split("-")[0]).numpy()})
            subprocess.run([*prefix, sys.executable, str(HERE / "answer.py"), place], check=True)
            for key, model in made.items():
                tensors = {tensor: digest(codes) for tensor, codes in answers(folder, key).items()}
                told[key] = {"grids": own_grids(model), "tensors": tensors}
        version = TARGETS["onnxruntime"].version
        header = {"runtime": f"onnxruntime {version}", "isa": isa, "seed": SEED, "command": COMMAND, "networks": told}
        path = HERE / f"networks-{isa}.json"
        path.write_text(json.dumps(header, separators=(",", ":")).replace('"tensors"', '\n"tensors"') + "\n", encoding="utf-8")
        print(f"{path.name}: {len(told)} networks, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
