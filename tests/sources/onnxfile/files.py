"""ONNX files as other tools write them, made by hand: nodes, constants and inputs in a few words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from exactq.sources import onnxfile
from exactq.sources.onnxfile import OnnxFile, OnnxModel
from exactq.sources.onnxfile.building import OPERATORS
from exactq.sources.onnxfile.reading import parse
from exactq.targets.onnxruntime import ONNXRUNTIME

Sizes = Sequence[int | str]


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    """`node("Conv", "x w b", "y", pads=[1, 1, 1, 1])`; an input that is left out is written `-`."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(kind, names, outputs.split(), **attributes)


def random(*sizes: int, seed: int = 0, positive: bool = False) -> np.ndarray:
    made = np.random.default_rng((seed, *sizes)).normal(size=sizes).astype(np.float32)
    return np.abs(made) + np.float32(0.5) if positive else made


def proto(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Sizes],
    constants: Mapping[str, Any] | None = None,
    *,
    opset: int = 17,
    outputs: str | None = None,
    kinds: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """The model of `nodes`; without `outputs` it returns what the last one makes."""
    kinds = kinds or {}
    names = outputs.split() if outputs is not None else [o for o in nodes[-1].output if o]
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info(k, kinds.get(k, TensorProto.FLOAT), list(v)) for k, v in inputs.items()],
        [helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), None) for name in names],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model, data_prop=True)  # the checker wants a shape of every output


def file_of(model: onnx.ModelProto, folder: Path = Path("nowhere")) -> OnnxFile:
    return parse(model.SerializeToString(), "m.onnx", folder, OPERATORS)


def imported(model: onnx.ModelProto, shapes: Sequence[tuple[int, ...]] | None = None, *, samples: int = 3) -> OnnxModel:
    """The model read, and found equal to ONNX Runtime on random inputs."""
    made = onnxfile.model(file_of(model), shapes)
    generator = torch.Generator().manual_seed(7)
    sizes = [(samples, *i.shape[1:]) if i.batch else i.shape for i in made.graph.inputs]
    onnxfile.check_reading(made, [torch.randn(s, generator=generator) for s in sizes], ONNXRUNTIME.timed)
    return made
