"""Accuracy and logit SQNR of int8 resnet20 on ONNX Runtime's default session, beside ONNX Runtime's own quantizer.

512 calibration images, 10,000 test images, trained CIFAR-10 weights; every row runs in the session a user gets by default.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from common import data_folder, machine, peak_memory, table
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from exactq import flow
from exactq.datasets.splits import Batch
from exactq.fidelity import Outputs
from exactq.sources.resolve import resolve
from exactq.targets import target_named
from exactq.targets.onnxruntime import runtime


class Reader(CalibrationDataReader):
    """The calibration images for ONNX Runtime's tools, a batch at a time."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches: Iterator[Batch] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, or None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {"x": batch.inputs[0].numpy()}


def by_onnxruntime(float_model: bytes, batches: Sequence[Batch], *, reduce_range: bool) -> bytes:
    """The float model quantized by `quantize_static`: QDQ, uint8 activations, int8 weights per channel, min-max."""
    with tempfile.TemporaryDirectory() as folder:
        source, ready, made = (Path(folder, name) for name in ("float.onnx", "ready.onnx", "int8.onnx"))
        source.write_bytes(float_model)
        quant_pre_process(str(source), str(ready))
        quantize_static(
            str(ready),
            str(made),
            Reader(batches),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return made.read_bytes()


def main() -> None:
    """Print accuracy and logit SQNR of float, exactq's recipes and ONNX Runtime's own quantizer."""
    weights = data_folder() / "models" / "resnet20-12fca82f.th"
    source = resolve("resnet20", weights=str(weights), batch_size=250)
    graph = flow.prepare(source.module, source.example)
    calibration = list(source.dataset.calibration)
    float_model = target_named("onnxruntime")[0].emit(graph)
    files = {"float": float_model}
    recipes = sys.argv[1:] or ["w8a8", "portable", "w8a8-linear-w4"]
    for recipe in recipes:
        made = flow.quantize_graph(graph, calibration=(b.inputs for b in calibration), recipe=recipe)
        files[f"exactq {recipe}"] = made.artifact()
    for reduce_range in (False, True):
        name = "quantize_static" + (" reduce_range" if reduce_range else "")
        files[name] = by_onnxruntime(float_model, calibration, reduce_range=reduce_range)
    sessions = {name: runtime.session(model) for name, model in files.items()}
    right, outputs, total = dict.fromkeys(files, 0), {name: Outputs() for name in files}, 0
    for batch in source.dataset.evaluation:
        assert batch.labels is not None
        answers: dict[str, tuple[Tensor, ...]] = {n: _run(s, batch.inputs) for n, s in sessions.items()}
        total += len(batch)
        for name, (logits,) in answers.items():
            right[name] += int((logits.argmax(1) == batch.labels).sum())
            outputs[name].add(answers["float"], (logits,))
    print(f"resnet20, {sum(len(b) for b in calibration)} calibration and {total} test images; {machine()}\n")
    table(
        ("model", "accuracy", "drop", "logit SQNR dB", "agreement", "KiB"),
        [
            (
                name,
                f"{right[name] / total:.4f}",
                f"{(right['float'] - right[name]) / total:+.4f}",
                f"{outputs[name].ratio.decibels:.1f}",
                f"{outputs[name].agreement:.4f}",
                len(files[name]) // 1024,
            )
            for name in files
        ],
    )
    print(f"\n{peak_memory()}")


def _run(session: ort.InferenceSession, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return runtime.run(session, inputs)


if __name__ == "__main__":
    main()
