"""A quantized model: the float graph it came from, the Q/DQ graph, the plan, and its target."""

from __future__ import annotations

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

PLAN, FLOAT, QUANTIZED = "plan.yaml", "float", "graph"


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
        store.write(path, self.artifact())
        return path

    def save(self, folder: str | Path) -> Path:
        """Write plan and graphs into a folder, made if needed; `load` reads them back without running anything."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        store.write(folder / PLAN, document.to_yaml(self.plan).encode())
        for name, graph in ((FLOAT, self.float_graph), (QUANTIZED, self.graph)):
            store.save(graph, folder / f"{name}.json", folder / f"{name}.safetensors")
        return folder


def load(folder: str | Path) -> Quantized:
    """The quantized model that `Quantized.save` wrote; raises `ModelError` where the folder is none, or damaged."""
    folder = Path(folder)
    if not (folder / PLAN).is_file():
        raise ModelError(f"{folder} is no folder of a quantized model: it has no {PLAN}")
    plan = document.from_yaml((folder / PLAN).read_text(encoding="utf-8"), str(folder / PLAN))
    graphs = [store.load(folder / f"{name}.json", folder / f"{name}.safetensors") for name in (FLOAT, QUANTIZED)]
    return Quantized(graphs[0], graphs[1], plan)
