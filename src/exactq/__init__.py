"""Quantize a PyTorch model for the runtime it will run on, and know every integer that runtime will produce.

This is the Python door: importing it loads nothing heavy, and a name is fetched from its module when it is first used.

>>> import exactq
>>> exactq.quantise
Traceback (most recent call last):
AttributeError: module 'exactq' has no attribute 'quantise': did you mean 'quantize'?
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what checkers and editors see of _DOOR; a test compares the two
    from exactq.flow import bench as bench
    from exactq.flow import convert as convert
    from exactq.flow import diff as diff
    from exactq.flow import explain as explain
    from exactq.flow import explain_biases as explain_biases
    from exactq.flow import export as export
    from exactq.flow import load as load
    from exactq.flow import plan as plan
    from exactq.flow import quantize as quantize
    from exactq.flow import read as read
    from exactq.flow import train as train
    from exactq.flow import verify as verify
    from exactq.quantized import Quantized as Quantized
    from exactq.runs import run as run

__version__ = "0.1.0"

LAYERS = (
    ("cli",),
    ("runs",),
    ("flow",),
    ("reports",),
    ("conversion",),
    ("verification", "difference", "explanation", "fidelity", "benchmark"),
    ("quantized",),
    ("targets",),
    ("training",),
    ("quantization",),
    ("calibration",),
    ("plans",),
    ("optimization",),
    ("sources",),
    ("models", "datasets", "metrics"),
    ("cache", "pythonfile", "timing", "memory"),
    ("graphs",),
    ("compilation",),
    ("traces",),
    ("kernels",),
    ("numerics",),
    ("errors", "talk"),
)
"""The modules from top to bottom: each imports from its own layer and those below it. `tests/test_house.py` enforces it."""

_DOOR = {
    "Quantized": "exactq.quantized",
    "bench": "exactq.flow",
    "convert": "exactq.flow",
    "diff": "exactq.flow",
    "explain": "exactq.flow",
    "explain_biases": "exactq.flow",
    "export": "exactq.flow",
    "load": "exactq.flow",
    "plan": "exactq.flow",
    "quantize": "exactq.flow",
    "read": "exactq.flow",
    "run": "exactq.runs",
    "train": "exactq.flow",
    "verify": "exactq.flow",
}
"""Public name -> the module that has it. Packages are nouns, so none is called like a function here."""

__all__ = [*_DOOR, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _DOOR:
        from importlib import import_module

        value = globals()[name] = getattr(import_module(_DOOR[name]), name)
        return value
    from difflib import get_close_matches

    close = get_close_matches(name, _DOOR, n=1)
    guess = f": did you mean '{close[0]}'?" if close else ""
    raise AttributeError(f"module 'exactq' has no attribute '{name}'{guess}", name=name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_DOOR})
