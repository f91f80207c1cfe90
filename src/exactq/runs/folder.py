"""The folder of a run: only a run replaces it, and reading it runs nothing.

`manifest.json` names every other file with its hash. What a folder says is data: its artifact is one of its own files, and a
Python file that it names is never executed.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exactq import pythonfile
from exactq.conversion.files import open_file
from exactq.datasets import catalog
from exactq.datasets.noise import noise_of
from exactq.datasets.splits import BATCH_SIZE, Dataset
from exactq.errors import ModelError, UsageError
from exactq.graphs import store
from exactq.quantized import Quantized, load
from exactq.reports import HTML, JSON, NODES
from exactq.reports.folder import MANIFEST
from exactq.talk import SILENT, Talk


@dataclass(frozen=True)
class Saved:
    """A run folder that was read: the model, its artifact's bytes, and where its data came from."""

    quantized: Quantized
    artifact: bytes
    data: str

    def dataset(self, *, seed: int, batch_size: int = BATCH_SIZE) -> Dataset:
        """The data, opened for the model's inputs, of which one sample calibrates. Raises `DataError`."""
        places = self.quantized.float_graph.inputs
        names, shapes = tuple(place.name for place in places), tuple(place.shape[1:] for place in places)
        return catalog.load(self.data, calibration=1, batch_size=batch_size, seed=seed, inputs=names, shapes=shapes)


def check_replaceable(out: Path) -> None:
    """Nothing, or `UsageError` for an `out` that is a file, or holds files that no run wrote: they would be lost."""
    place = Path(os.path.abspath(out))
    if Path.cwd().is_relative_to(place):
        raise UsageError(f"--out {out} is this folder or one above it, and a run replaces its folder: choose one below")
    if out.is_symlink():
        raise UsageError(f"{out} is a link, and a run replaces its folder: choose another --out, or the folder it leads to")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; --out needs a folder")
    if not out.exists():
        return
    held = {path.name for path in out.iterdir()}
    if not held:
        return
    try:
        known = {MANIFEST, HTML, JSON, NODES, *read_manifest(out)["sha256"]}
    except ModelError:
        known = set()
    if foreign := sorted(held - known if known else held):
        raise UsageError(
            f"{out} holds files that are no run of exactq ({foreign[0]}), and a run replaces its folder: choose another --out"
        )


def write_json(path: Path, content: Any) -> None:
    """Write plain data as JSON, whole or not at all."""
    store.write(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """The plain data in a file that a run wrote. Raises `ModelError` for one that is missing or damaged."""
    try:
        return json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged ({_first_line(error)}): make the run again") from error


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Write the manifest: `facts`, and the hash of each file that is in the folder by now."""
    hashes = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}
    write_json(folder / MANIFEST, {**facts, "sha256": hashes})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run folder. Raises `ModelError` for one that is missing, damaged, or names a file elsewhere."""
    path = folder / MANIFEST
    manifest = read_json(path)
    fields = manifest if isinstance(manifest, dict) else {}
    texts = [fields.get(key) for key in ("exactq", "artifact", "data")]
    hashes = fields.get("sha256")
    if not all(isinstance(text, str) for text in texts) or not isinstance(hashes, dict):
        raise ModelError(f"{path} is no manifest of a run: it needs exactq, artifact, data and sha256")
    if fields["artifact"] not in hashes or any(not _plain(name) for name in hashes):
        raise ModelError(f"{path} names files outside of the folder, or an artifact that is none of its own: refused")
    return fields


def _plain(name: str) -> bool:
    """Whether the name can only be that of a file in the folder itself."""
    return name not in ("", ".", "..") and Path(name).name == name and "\\" not in name and "\0" not in name


def open_model(folder: Path) -> Quantized:
    """The quantized model of a run folder, or of a file that exactq wrote and reads back.

    Raises `UsageError` where there is neither, `ModelError` for what is damaged.
    """
    if folder.is_file():
        return open_file(folder)
    if not folder.is_dir():
        raise UsageError(f"there is no run folder {folder}: make one with `exactq run`")
    try:
        return load(folder)
    except UnicodeDecodeError as error:
        raise ModelError(f"{folder} is damaged: plan.yaml is no UTF-8 text ({error.reason}); make the run again") from error


def open_run(folder: Path, *, data: str | None = None, talk: Talk = SILENT) -> Saved:
    """The run in a folder; `data` is what to use instead of the run's own. Nothing that the folder names is executed.

    A file alone names no data: without any it is noise.

    Files that were edited since the run wrote them are told.
    Raises `UsageError` for no folder and for a run whose data came from a Python file, `ModelError` for a damaged folder.
    """
    quantized = open_model(folder)
    if folder.is_file():
        return Saved(quantized, _read(folder), data or _noise(quantized))
    manifest = read_manifest(folder)
    if data is None and pythonfile.is_named(manifest["data"]):
        raise UsageError(f"the run's data came from {manifest['data']}, which is not executed unasked: give it with --data")
    artifact = _read(folder / manifest["artifact"])
    for name, digest in manifest["sha256"].items():
        if _digest(folder / name) != digest:
            talk.say(f"note       {name} is not the file that the run wrote")
    return Saved(quantized, artifact, data if data is not None else manifest["data"])


def _noise(quantized: Quantized) -> str:
    """Random data of a model's inputs."""
    return noise_of(tuple(tuple(i.shape[1:]) for i in quantized.float_graph.inputs))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read ({error.strerror}): the run folder is not whole, make the run again"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
