"""The state of a training in one file, so that a killed one goes on: safetensors, with what is no tensor as JSON in its header.

One file is replaced by one rename: whenever the process dies, there is the old state or the new one. Nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from exactq.errors import UsageError
from exactq.graphs import store

KEY, VERSION = "exactq training", 1


@dataclass(frozen=True)
class Checkpoint:
    """What has to be known to go on: `job` says of which training, `facts` is plain JSON, `tensors` have names."""

    job: str
    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Nothing; `path` holds the checkpoint, whole. Raises `UsageError` where it cannot be written."""
    text = json.dumps({"version": VERSION, "job": checkpoint.job, "facts": checkpoint.facts}, allow_nan=False)
    tensors = {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in checkpoint.tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        store.write(path, safetensors.torch.save(tensors, {KEY: text}))
    except OSError as error:
        raise UsageError(f"the training's state cannot be written to {path}: {error.strerror}; choose another file") from error


def load(path: Path, job: str) -> Checkpoint | None:
    """The checkpoint in `path`, None where there is no such file.

    Raises `UsageError` for a file that is damaged, or of another training: other weights, plan, data or settings.
    """
    if not path.exists():
        return None
    mend = "delete it to train from the beginning, or choose another file"
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            content = json.loads((file.metadata() or {})[KEY])
            version, found, facts = content["version"], content["job"], content["facts"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a dict)
    except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} holds no state of a training, or a damaged one: {mend}") from error
    if version != VERSION or found != job:
        raise UsageError(f"{path} holds the state of another training (other weights, plan, data or settings): {mend}")
    return Checkpoint(job, facts, tensors)
