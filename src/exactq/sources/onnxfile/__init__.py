"""A float `.onnx` file -> a graph of ATen operators under the file's own names; nothing of the file is executed."""

from exactq.sources.onnxfile.agreement import check_reading
from exactq.sources.onnxfile.building import build, read
from exactq.sources.onnxfile.modules import OnnxModel, model
from exactq.sources.onnxfile.reading import OnnxFile, Place

__all__ = ["OnnxFile", "OnnxModel", "Place", "build", "check_reading", "model", "read"]
