"""A function out of a user's own file, named `file.py:function`; what goes wrong inside it is told by file and line.

Naming the file asks for running it: nothing else in exactq runs code that came with a model or with data.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from exactq import cache
from exactq.errors import ExactqError, UsageError, unknown


def is_named(spec: str) -> bool:
    """Whether `spec` speaks of a Python file: `file.py:function`, or `file.py` whose function was forgotten.

    >>> is_named("nets/mine.py:net"), is_named("mine.py"), is_named("cifar10:folder")
    (True, True, False)
    """
    return spec.endswith(".py") or spec.rpartition(":")[0].endswith(".py")


def function(spec: str, error: type[ExactqError]) -> Callable[..., Any]:
    """The callable that `file.py:function` names; the file is run once for each state of its text.

    Raises `UsageError` for a function that is not there or not named, and `error` for a missing file or one that fails.
    """
    path, name = _parts(spec)
    if not path.is_file():
        raise error(f"`{spec}`: there is no file {path}")
    if not name:
        raise UsageError(f"`{spec}` names no function: write {path}:FUNCTION, it has {', '.join(_functions(path)) or 'none'}")
    with told(spec, error):
        module = _module(path.resolve(), path.read_text(encoding="utf-8"))
    found = getattr(module, name, None)
    if found is None:
        raise unknown(f"function in {path}", name, _functions(path))
    if not callable(found):
        raise UsageError(f"`{spec}` is a {type(found).__name__}: a function is needed")
    return found


@contextmanager
def told(spec: str, error: type[ExactqError]) -> Iterator[None]:
    """Inside, any exception (and `sys.exit`) of the user's code becomes `error` with the file, the line and its message.

    The line is the deepest one in the user's file: `mine.py:12`. Modules beside the file can be imported.
    """
    path, _ = _parts(spec)
    beside = str(path.resolve().parent)
    sys.path.insert(0, beside)
    try:
        yield
    except ExactqError:
        raise
    except (Exception, SystemExit) as e:
        said = e.msg if isinstance(e, SyntaxError) else str(e)
        raise error(f"`{spec}` failed at {place(spec, e)}: {type(e).__name__}: {said}") from e
    finally:
        if beside in sys.path:
            sys.path.remove(beside)


def place(spec: str, error: BaseException) -> str:
    """Where in the user's file `error` arose: `mine.py:12`, or `mine.py` where none of its lines took part."""
    path, _ = _parts(spec)
    return f"{path}{_line(error, path)}"


def _parts(spec: str) -> tuple[Path, str]:
    """The file and the function's name, which is empty where none is given."""
    file, _, name = (spec, "", "") if spec.endswith(".py") else spec.rpartition(":")
    return Path(file), name


def _line(error: BaseException, path: Path) -> str:
    """`:12` for the deepest line of `path` that took part in `error`, or nothing where it took no part."""
    where = str(path.resolve())
    if isinstance(error, SyntaxError) and error.filename == where:
        return f":{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == where]
    return f":{lines[-1]}" if lines else ""


@lru_cache(maxsize=32)
def _module(path: Path, text: str) -> ModuleType:
    """The module that running `path` gives; a model, its data and its metric in one file share one module."""
    name = f"_exactq_file_{path.stem}_{cache.key(str(path), text)}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise UsageError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up by name
    try:
        exec(compile(text, str(path), "exec"), module.__dict__)  # no stale .pyc of a file edited within its mtime
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _functions(path: Path) -> list[str]:
    """The functions and classes that `path` defines at its top, read without running it."""
    try:
        body = ast.parse(path.read_text(encoding="utf-8")).body
    except (SyntaxError, ValueError):
        return []
    return [n.name for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]
