"""The runtimes: a table of records, one folder each; none imports another."""

from __future__ import annotations

from exactq.errors import unknown
from exactq.targets.onnxruntime import ONNXRUNTIME
from exactq.targets.pytorch import FBGEMM, INDUCTOR, ONEDNN, QNNPACK, X86
from exactq.targets.target import Runtime, Target

TARGETS = {t.name: t for t in (ONNXRUNTIME, FBGEMM, X86, ONEDNN, QNNPACK, INDUCTOR)}


def target_named(text: str) -> tuple[Target, str]:
    """The target and instruction set of `name` or `name@isa`; without one, that of this machine.

    Raises `UsageError` for an unknown name or an instruction set that was not measured.
    """
    name, at, isa = text.partition("@")
    if name not in TARGETS:
        raise unknown("target", name, TARGETS)
    target = TARGETS[name]
    if at and isa not in target.isas:
        raise unknown(f"instruction set of {name}", isa, target.isas)
    return target, isa or target.detect_isa()


__all__ = ["TARGETS", "Runtime", "Target", "target_named"]
