"""A golden file: a JSON header and the bytes of arrays one after the other, in a zip that is the same whenever it is made."""

from __future__ import annotations

import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class Arrays:
    """The bytes of arrays as they are put in; `at` says where each lies."""

    def __init__(self) -> None:
        self.data = bytearray()

    def put(self, array: Array | None) -> list[Any] | None:
        if array is None:
            return None
        at = [str(array.dtype), list(array.shape), len(self.data)]
        self.data.extend(np.ascontiguousarray(array).tobytes())
        return at


def get(data: bytes, at: list[Any] | None) -> Array | None:
    if at is None:
        return None
    dtype, shape, offset = at
    return np.frombuffer(data, dtype, math.prod(shape), offset).reshape(shape).copy()


def write(path: Path, header: dict[str, Any], data: bytes) -> None:
    arrays = {
        "header": np.frombuffer(json.dumps(header, default=int).encode(), np.uint8),
        "data": np.frombuffer(data, np.uint8),
    }
    with zipfile.ZipFile(path, "w") as archive:  # numpy's own writer stores the time
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_DEFLATED, 9)


def read(path: Path) -> tuple[dict[str, Any], bytes]:
    with np.load(path) as stored:
        return json.loads(bytes(stored["header"])), bytes(stored["data"])
