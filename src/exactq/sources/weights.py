"""Weights from a file into a model, without running anything that the file carries.

safetensors holds tensors alone. A torch checkpoint is a pickle; it is read by torch's restricted reader (`weights_only=True`),
which knows tensors and containers and refuses the rest. A `.pt2` archive can run code when it is loaded: only with trust.
"""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exactq.errors import ModelError

WRAPPERS = ("state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")  # DataParallel's and torch.compile's
HARMLESS = re.compile(r"torch\._utils\.|torch\._tensor\.|torch\.\w*Storage|torch\.storage\.|collections\.OrderedDict")
SHOWN = 3


def read(path: Path, *, trust: bool = False) -> dict[str, Tensor]:
    """Name -> tensor, as in the file but for `state_dict`/`model` around it and `module.` before every name.

    Raises `ModelError` for a file that is missing, damaged, holds anything but tensors, or carries code.
    """
    if not path.is_file():
        raise ModelError(f"there is no weights file {path}")
    if path.suffix == ".pt2":
        tensors = _read_pt2(path, trust=trust)
    elif path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    else:
        tensors = _unwrapped(_read_torch(path), path)
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if not tensors:
        raise ModelError(f"{path} holds no tensor")
    return tensors


def fill(module: nn.Module, tensors: Mapping[str, Tensor], file: str) -> None:
    """Nothing; the model holds the tensors, cast to its own kinds. Names, shapes and values are checked before.

    Counters `num_batches_tracked` may be missing: inference does not read them. Raises `ModelError`.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    surplus = [name for name in tensors if name not in own]
    if missing or surplus:
        raise ModelError(f"{file} does not fit the model: " + "; ".join(_misfits(missing, surplus)))
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise ModelError(f"{file}: `{name}` has the shape {tuple(tensor.shape)}, the model's is {tuple(own[name].shape)}")
        if own[name].is_floating_point() != tensor.is_floating_point() or tensor.is_complex():
            raise ModelError(f"{file}: `{name}` is {_kind(tensor)}, the model's is {_kind(own[name])}")
        check_finite(name, tensor.to(own[name].dtype), f"{file}: ")
    module.load_state_dict(dict(tensors), strict=False)


def check_finite(name: str, tensor: Tensor, where: str = "") -> None:
    """Nothing, or a `ModelError` that names the tensor and the first channel and index where it is not finite."""
    finite = torch.isfinite(tensor)
    if bool(finite.all()):
        return
    index = tuple(int(i) for i in torch.nonzero(~finite)[0])
    value = "a NaN" if bool(torch.isnan(tensor[index])) else "an infinity"
    place = f" (channel {index[0]}, index {index})" if len(index) > 1 else f" (channel {index[0]})" if index else ""
    raise ModelError(f"{where}`{name}` has {value}{place}: a grid needs finite values")


def _misfits(missing: list[str], surplus: list[str]) -> list[str]:
    """What is wrong with the names, in phrases: the first few of each, and for a lone misspelling its likely meaning."""

    def shown(names: list[str]) -> str:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        return ", ".join(f"`{name}`" for name in names[:SHOWN]) + more

    said = [f"missing {shown(missing)}"] if missing else []
    said += [f"unexpected {shown(surplus)}"] if surplus else []
    if missing and surplus and (close := get_close_matches(surplus[0], missing, n=1)):
        said.append(f"`{surplus[0]}` may be `{close[0]}`")
    return said


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError) as e:
        raise ModelError(f"{path} cannot be read as safetensors, it is damaged or incomplete: {e}") from e


def _read_pt2(path: Path, *, trust: bool) -> dict[str, Tensor]:
    if not trust:
        raise ModelError(f"{path}: loading a .pt2 file can run code that it carries: refused, nothing was run; --trust allows")
    try:
        program = torch.export.load(path)
    except Exception as e:  # whatever the archive's own code raises
        raise ModelError(f"{path} cannot be loaded as .pt2: {_first_line(e)}") from e
    return dict(program.state_dict)


def _read_torch(path: Path) -> object:
    """What torch's restricted reader makes of the file. Raises `ModelError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles of other protocols: they are read or they are refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # the reader fails in many ways on bad input: KeyError, EOFError, RuntimeError …
        names = _carried(path)
        if names:
            raise ModelError(
                f"{path} carries code ({', '.join(names[:SHOWN])}): refused, nothing was run. "
                "Save the state dict alone, best as safetensors"
            ) from e
        # torch's own words advise to load it without restriction, which is what nobody should do here.
        raise ModelError(
            f"{path} cannot be read as a torch checkpoint, it is damaged or incomplete, or no checkpoint at all; give a state "
            "dict saved by torch.save, or safetensors"
        ) from e


def _carried(path: Path) -> list[str]:
    """The functions and classes that unpickling the file would call, but for those that tensors are made of; nothing is run."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                data = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
        else:
            data = path.read_bytes()
    except (OSError, StopIteration, zipfile.BadZipFile, EOFError):
        return []
    return [name for name in _globals(data) if not HARMLESS.match(name)]


def _globals(data: bytes) -> list[str]:
    """`module.name` of each global that a pickle names, in order; of a damaged one, those before the damage."""
    found: dict[str, None] = {}
    memo: list[str] = []
    strings = ["", ""]  # the last ones pushed: STACK_GLOBAL takes two of them
    with suppress(ValueError, IndexError):
        for operator, argument, _ in pickletools.genops(data):
            if operator.name in ("GLOBAL", "INST"):
                found[str(argument).replace(" ", ".")] = None
            elif operator.name == "STACK_GLOBAL":
                found[".".join(strings[-2:])] = None
            elif operator.name == "MEMOIZE":
                memo.append(strings[-1])
            elif operator.name in ("BINGET", "LONG_BINGET") and isinstance(argument, int):
                strings += memo[argument : argument + 1]
            elif isinstance(argument, str):
                strings.append(argument)
    return list(found)


def _unwrapped(loaded: object, path: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint. Raises `ModelError` for anything that is not a name with its tensor."""
    content: Any = loaded
    while isinstance(content, Mapping) and (key := next((k for k in WRAPPERS if isinstance(content.get(k), Mapping)), None)):
        content = content[key]
    if not isinstance(content, Mapping):
        raise ModelError(f"{path} holds a {type(content).__name__}: a state dict (name -> tensor) is needed")
    for name, value in content.items():
        if not isinstance(name, str):
            raise ModelError(f"{path}: the name {name!r} is a {type(name).__name__}: a state dict has strings for names")
        if not isinstance(value, Tensor):
            raise ModelError(f"{path}: `{name}` is a {type(value).__name__}, not a tensor: save the state dict alone")
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise ModelError(f"{path}: `{name}` is sparse, quantized or without values: save dense tensors of numbers")
    return {name: value.detach() for name, value in content.items()}


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
