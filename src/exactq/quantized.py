"""A quantized model: the float graph it came from, the Q/DQ graph, the plan, and its target."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from exactq.errors import ModelError, UsageError
from exactq.graphs import store
from exactq.graphs.graph import Graph
from exactq.graphs.programs import multiply_accumulates, shapes
from exactq.graphs.qdq import CODES, read_quantize
from exactq.numerics.formats import Grid
from exactq.plans import document
from exactq.plans.plan import Plan
from exactq.targets import TARGETS
from exactq.targets.target import Target
from exactq.traces import Program

PLAN, FLOAT, QUANTIZED, SEAL = "plan.yaml", "float", "graph", "quantized.json"
"""The files of a folder: the plan, two graphs of two files each, and what ties them together: their hashes, and the notes."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """What `quantize` returns. `float_graph` is the optimised float model, `graph` the same on the plan's grids.

    `notes` says in sentences what had to be done beyond the plan.
    """

    float_graph: Graph
    graph: Graph
    plan: Plan
    notes: tuple[str, ...] = ()

    @property
    def target(self) -> Target:
        """The runtime that the plan was made for."""
        if self.plan.target not in TARGETS:
            raise UsageError(f"the plan is for the target '{self.plan.target}', which this exactq does not know")
        return TARGETS[self.plan.target]

    @property
    def grids(self) -> Mapping[str, Grid]:
        """Value name -> the grid it is encoded on, in the order of the graph."""
        found = {}
        for node in self.graph.calls:
            if (q := read_quantize(self.graph, node)) is not None:
                found[self.graph.name(node).removesuffix(CODES)] = q.grid
        return found

    def program(self, isa: str | None = None) -> Program:
        """The emulator: this model on the target's kernels, for the plan's instruction set or another measured one."""
        return self.target.lower(self.graph, isa or self.plan.isa)

    def lower(self, graph: Graph) -> Program:
        """The emulator of another Q/DQ graph, on this model's target and the plan's instruction set."""
        return self.target.lower(graph, self.plan.isa)

    def coverage(self) -> float | None:
        """The share of multiply-accumulates that run in integer kernels, 0 to 1; None for a model without any."""
        counts = multiply_accumulates(self.float_graph, shapes(self.float_graph))
        total = sum(counts.values())
        done = {name for step in self.program().steps for name in step.covers}
        return sum(n for name, n in counts.items() if name in done) / total if total else None

    def artifact(self) -> bytes:
        """The model as the target's own file, as bytes; the same model gives the same bytes."""
        return self.target.emit(self.graph)

    def export(self, path: str | Path) -> Path:
        """Write the target's own file, whole or not at all, and return its path.

        Raises `UsageError` for another ending than the target's.
        """
        path = Path(path)
        if path.suffix != self.target.suffix:
            raise UsageError(f"{path.name}: files for {self.target.name} end in '{self.target.suffix}'")
        try:
            store.write(path, self.artifact())
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}; choose another file") from error
        return path

    def save(self, folder: str | Path) -> Path:
        """Write plan and graphs into a folder, made if needed; `load` reads them back without running anything."""
        folder = Path(folder)
        files = {PLAN: document.to_yaml(self.plan).encode()}
        for name, graph in ((FLOAT, self.float_graph), (QUANTIZED, self.graph)):
            files[f"{name}.json"], files[f"{name}.safetensors"] = store.dumps(graph)
        seal = {"format": FORMAT, "version": VERSION, "notes": list(self.notes), "files": _hashes(files)}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, data in files.items():
                store.write(folder / name, data)
            store.write(folder / SEAL, f"{json.dumps(seal, indent=1, ensure_ascii=False)}\n".encode())
        except OSError as error:
            raise UsageError(f"cannot write to {folder}: {error.strerror}; choose another folder") from error
        return folder


FORMAT, VERSION = "exactq quantized model", 1


def _hashes(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def load(folder: str | Path) -> Quantized:
    """The quantized model that `Quantized.save` wrote; nothing in the folder is executed.

    Raises `ModelError` where the folder is none, is damaged, or holds files of two models or a plan that was changed since.
    """
    folder = Path(folder)
    if not (folder / PLAN).is_file():
        raise ModelError(f"{folder} is no folder of a quantized model: it has no {PLAN}")
    names = [PLAN, *(f"{graph}.{end}" for graph in (FLOAT, QUANTIZED) for end in ("json", "safetensors"))]
    try:
        files = {name: (folder / name).read_bytes() for name in names}
    except OSError as error:
        raise ModelError(f"{folder} is damaged: {error.strerror} ({error.filename})") from error
    try:
        plan = document.from_yaml(files[PLAN].decode(), str(folder / PLAN))
    except UnicodeDecodeError as error:
        raise ModelError(f"{folder} is damaged: {PLAN} is no UTF-8 text ({error.reason})") from error
    except UsageError as error:
        raise ModelError(f"{folder} is damaged: {error}") from error
    graphs = []
    for name in (FLOAT, QUANTIZED):
        try:
            graphs.append(store.loads(files[f"{name}.json"], files[f"{name}.safetensors"]))
        except ModelError as error:
            raise ModelError(f"{folder}: {name}.json: {error}") from error
    return Quantized(graphs[0], graphs[1], plan, _sealed_notes(folder, files))


def _sealed_notes(folder: Path, files: Mapping[str, bytes]) -> tuple[str, ...]:
    """The notes of the model whose files these are; `ModelError` where they are not all of one model, as it was written."""
    try:
        seal = json.loads((folder / SEAL).read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{folder} is damaged: {error.strerror} ({error.filename})") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{folder} is damaged: {SEAL} is no JSON") from error
    if not isinstance(seal, dict) or (seal.get("format"), seal.get("version")) != (FORMAT, VERSION):
        raise ModelError(f"{folder} is damaged: {SEAL} is not of version {VERSION} of the format, which this exactq reads")
    notes, written = seal.get("notes"), seal.get("files")
    if not isinstance(notes, list) or not all(isinstance(n, str) for n in notes) or not isinstance(written, dict):
        raise ModelError(f"{folder} is damaged: {SEAL} lacks its notes or its hashes")
    for name, found in _hashes(files).items():
        if written.get(name) != found:
            mend = "give an edited plan to `quantize` instead" if name == PLAN else "quantize the model anew"
            raise ModelError(f"{folder}: {name} is not the file that was written with the others: {mend}")
    return tuple(notes)
