"""What `exactq convert` does: a module that others prepared or quantized, on its own grids, as a run folder."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from exactq.conversion import foreign
from exactq.plans.plan import Plan
from exactq.runs import write_run
from exactq.runs.folder import check_replaceable
from exactq.runs.measurement import sizes
from exactq.runs.wishes import Wishes
from exactq.runs.workplace import working
from exactq.sources.resolve import quantized_source
from exactq.talk import SILENT, Talk
from exactq.verification import verify

INPUTS = 64
"""How many inputs the deployed file is run on, beside the module that it comes from."""


def convert(
    model: str,
    *,
    target: str | None = None,
    data: str | None = None,
    input_shape: str | None = None,
    seed: int = 0,
    out: str | None = None,
    talk: Talk = SILENT,
) -> tuple[Plan, dict[str, Any]]:
    """`file.py:factory` -> run folder; back come its plan and the facts as plain data (the JSON of `exactq convert`).

    `target` None: the engine that PyTorch is set to once the factory has run. `outputs` says how many outputs of the artifact
    differ from the module's own, `verify` how many integers from the emulator's. Raises the errors of `exactq.errors`.
    """
    source = quantized_source(model, data=data, input_shape=input_shape, seed=seed)
    engine = target if target is not None else torch.backends.quantized.engine
    asked = Wishes(model, data=data, target=engine, input_shape=input_shape, seed=seed, out=out)
    check_replaceable(asked.folder)
    with working(asked.folder, talk) as work:
        with talk.track("read", None):
            theirs = foreign(source.module, source.example, target=engine)
            made = theirs.quantized
            artifact = made.artifact()
        runtime = made.target.open(artifact)
        elements = differ = 0
        with talk.track("compare", INPUTS) as advance:
            batches = [batch.inputs for batch in source.dataset.evaluation.first(INPUTS)]
            for batch in batches:
                for own, deployed in zip(theirs.runtime.run(batch), runtime.run(batch), strict=True):
                    elements, differ = elements + own.numel(), differ + int((own != deployed).sum())
                advance(len(batch[0]))
        with talk.track("verify", INPUTS) as advance:
            verdict = verify(made, batches, inputs=INPUTS, runtime=runtime, progress=advance)
        work.publish(lambda folder: write_run(folder, asked, source, made, artifact, None))
    return made.plan, {
        "out": str(asked.folder),
        "model": source.label,
        "target": f"{made.plan.target}@{made.plan.isa}",
        "kind": theirs.kind,
        "mode": theirs.mode,
        "jumps": [asdict(jump) | {"told": str(jump)} for jump in theirs.jumps],
        "outputs": {"elements": elements, "differ": differ},
        "verify": verdict.to_json(),
        "size": sizes(made, artifact),
        "notes": list(made.notes),
    }
