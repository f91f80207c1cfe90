"""ONNX Runtime with numpy alone: how a session is set up, and what a process of its own loads to measure one file's memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]

PROVIDERS = ["CPUExecutionProvider"]

IDENTITY = (
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01b\x0f\n\x01y'
    b"\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
"""The smallest file: float x of shape [1] -> Identity -> y, opset 13, as `onnx.helper` writes it."""


def options(threads: int) -> Any:
    """A session's options as a user gets them, silent; `threads` 0 leaves the number to ONNX Runtime."""
    made = ort.SessionOptions()
    made.log_severity_level = 4  # errors are raised; the logger would only repeat them on stderr
    made.intra_op_num_threads = threads
    return made


def start() -> None:
    """Make the runtime ready: what its first session sets up for all later ones is there afterwards."""
    ort.InferenceSession(IDENTITY, options(1), providers=PROVIDERS).run(None, {"x": np.zeros(1, np.float32)})


def load(model: str, threads: int) -> Callable[[Sequence[Any]], object]:
    """The file at the path `model` as a function of arrays in the order of its inputs."""
    made = ort.InferenceSession(model, options(threads), providers=PROVIDERS)
    names = [place.name for place in made.get_inputs()]
    return lambda inputs: made.run(None, dict(zip(names, inputs, strict=True)))
