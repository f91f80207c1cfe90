"""Where slow results are kept between runs: in one folder, under a key of everything they depend on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from exactq.errors import UsageError


def folder() -> Path:
    """The cache folder, made if need be: `EXACTQ_CACHE`, else `exactq` in `XDG_CACHE_HOME` or in `~/.cache`.

    Raises `UsageError` where it can neither be made nor written to.
    """
    chosen = os.environ.get("EXACTQ_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    path = Path(chosen) if chosen else (Path(base) if base else Path.home() / ".cache") / "exactq"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"the cache folder {path} cannot be made ({e.strerror}): set EXACTQ_CACHE to one that can") from e
    if not os.access(path, os.W_OK):
        raise UsageError(f"the cache folder {path} cannot be written to: set EXACTQ_CACHE to one that can")
    return path


def key(*parts: str | int | bytes) -> str:
    """The 16 hex digits that stand for `parts`; each part's kind and length counts, so no two lists share their text.

    >>> key("ab", "c") == key("a", "bc"), key(1) == key("1")
    (False, False)
    """
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        digest.update(f"{type(part).__name__}:{len(data)}:".encode() + data)
    return digest.hexdigest()[:16]


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of named tensors in 64 hex digits: names, kinds, shapes and bytes, whatever their order."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
