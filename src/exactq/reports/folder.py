"""A run folder read back and checked: every file that the manifest lists is there, unchanged, and says what it should."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import FiniteFloat, TypeAdapter, ValidationError

from exactq.errors import ModelError, UsageError
from exactq.quantized import Quantized, load
from exactq.reports.facts import Histogram, IntegerFacts, Latency, Size, TrainingFacts, Verification, problem

MANIFEST, METRICS, VERIFY = "manifest.json", "metrics.json", "verify.json"

T = TypeVar("T")


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says; `asked` are the flags of the run by name, where it was written with them."""

    exactq: str
    model: str
    data: str
    artifact: str
    target: str
    isa: str
    versions: dict[str, str]
    seed: int
    calibration: int
    sha256: dict[str, str]
    asked: dict[str, str | int | FiniteFloat | bool | None] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerNoise:
    """A value's signal-to-noise ratio; None where it is no finite number."""

    name: str
    sqnr_db: FiniteFloat | None


@dataclass(frozen=True)
class Metrics:
    """What `metrics.json` says; the fields with defaults came later than the others."""

    metric: dict[str, str | FiniteFloat | None]
    coverage: FiniteFloat | None
    agreement: FiniteFloat | None
    sqnr_db: FiniteFloat | None
    mean_error: FiniteFloat | None
    layers: tuple[LayerNoise, ...]
    size: Size
    latency: Latency
    notes: tuple[str, ...]
    verdict: Literal["ok", "over_budget", "differs", "untrained", "not_quantized"]
    activations: dict[str, Histogram] = field(default_factory=dict)
    ptq_layers: tuple[LayerNoise, ...] = ()
    training: TrainingFacts | None = None
    integers: tuple[IntegerFacts, ...] = ()


@dataclass(frozen=True)
class Run:
    """A whole run folder; `metrics` and `verify` are both None after `exactq quantize`, which measures nothing."""

    manifest: Manifest
    quantized: Quantized
    artifact_bytes: int
    metrics: Metrics | None
    verify: Verification | None


def read(folder: str | Path) -> Run:
    """The run in `folder`; raises `ModelError` where it is none, is not whole, or is not as it was written."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"there is no run folder {folder}: make one with `exactq run`")
    if not (folder / MANIFEST).is_file():
        raise ModelError(f"{folder} is no run folder, or one of a run that did not end: it has no {MANIFEST}")
    manifest = _parsed(folder / MANIFEST, Manifest)
    for name, digest in manifest.sha256.items():
        if Path(name).name != name:
            raise ModelError(f"{folder / MANIFEST} lists '{name:.80}', which is no file of the folder")
        if hashlib.sha256(_bytes(folder / name)).hexdigest() != digest:
            raise ModelError(f"{folder / name} is not the file that the run wrote: run again, or with --plan to keep an edit")
    for name in (manifest.artifact, "plan.yaml"):
        if name not in manifest.sha256:
            raise ModelError(f"{folder / MANIFEST} does not list {name:.80}: the run folder is not whole")
    measured = [name for name in (METRICS, VERIFY) if name in manifest.sha256]
    if len(measured) == 1:
        raise ModelError(f"the run folder {folder} is not whole: it has {measured[0]} alone of {METRICS} and {VERIFY}")
    try:
        quantized = load(folder)
    except UsageError as error:
        raise ModelError(str(error)) from error
    return Run(
        manifest,
        quantized,
        (folder / manifest.artifact).stat().st_size,
        _parsed(folder / METRICS, Metrics) if measured else None,
        _parsed(folder / VERIFY, Verification) if measured else None,
    )


def _parsed(path: Path, record: type[T]) -> T:
    try:
        return TypeAdapter(record).validate_json(_bytes(path), strict=True)
    except ValidationError as error:
        raise ModelError(f"{path} is damaged: {problem(error)}") from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"the run folder is not whole: {path} cannot be read ({error.strerror})") from error
