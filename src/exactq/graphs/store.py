"""A graph in two files, and back: `graph.json` says the operators, a safetensors file holds the constants.

Loading runs nothing and unpickles nothing: operators come only from `aten` and `quantized_decomposed` (and the arithmetic of
sizes in `OPERATORS`), none that changes its input or reads a file; names are checked before any code is made of them. Equal
graphs give equal bytes. The JSON holds the hash of the tensors, so halves of two graphs never pass for one.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
from collections.abc import Callable
from keyword import iskeyword
from pathlib import Path
from typing import Any
from uuid import uuid4

import safetensors
import safetensors.torch
import torch
import torch.ao.quantization.fx._decomposed  # makes the operators of quantized_decomposed known
from torch import Tensor, fx

from exactq.errors import ModelError
from exactq.graphs.graph import Graph, Input, attribute_path, root_of

FORMAT = "exactq graph"
VERSION = 1

OPERATORS: dict[str, Callable[..., Any]] = {
    f"operator.{function.__name__}": function
    for function in (operator.add, operator.floordiv, operator.getitem, operator.mod, operator.mul, operator.neg, operator.sub)
}
"""What a call may be besides an ATen operator: the choice of a result, and arithmetic on sizes."""

_DTYPES = {str(d).removeprefix("torch."): d for d in vars(torch).values() if isinstance(d, torch.dtype)}
_LAYOUTS = {"strided": torch.strided}
_MEMORY_FORMATS = {
    str(f).removeprefix("torch."): f
    for f in (torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)
}
_ENUMS: dict[str, dict[str, Any]] = {"dtype": _DTYPES, "layout": _LAYOUTS, "memory_format": _MEMORY_FORMATS}
_FLOATS = {"inf", "-inf", "nan"}


def save(graph: Graph, json_path: Path, tensors_path: Path) -> None:
    """Write both files, each to a temporary name first; the JSON last. Raises `ModelError` for what cannot be written."""
    text, tensors = dumps(graph)
    write(tensors_path, tensors)
    write(json_path, text)


def load(json_path: Path, tensors_path: Path) -> Graph:
    """The graph of both files; raises `ModelError` for files that are missing, damaged, of another graph, or hostile."""
    try:
        text, tensors = json_path.read_bytes(), tensors_path.read_bytes()
    except OSError as error:
        raise ModelError(f"the graph cannot be read: {error.strerror} ({error.filename})") from error
    try:
        return loads(text, tensors)
    except ModelError as error:
        raise ModelError(f"{json_path.name}: {error}") from error


def write(path: Path, data: bytes) -> None:
    """Put `data` at `path`, whole or not at all: written beside it, flushed to the disk, renamed."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def dumps(graph: Graph) -> tuple[bytes, bytes]:
    """The bytes of both files: JSON, safetensors."""
    tensors: dict[str, Tensor] = {}
    nodes: list[dict[str, Any]] = []
    constants = graph.constants
    for node in graph:
        entry: dict[str, Any] = {"id": node.name, "name": graph.name(node)}
        if node.op == "get_attr":
            entry["constant"] = str(node.target)
            # A copy each: safetensors refuses tensors that share memory.
            tensors[str(node.target)] = constants[graph.name(node)].cpu().clone(memory_format=torch.contiguous_format)
        elif node.op == "call_function":
            kwargs = {k: _encoded(v, node) for k, v in node.kwargs.items() if not isinstance(v, torch.device)}
            entry |= {"call": _target_name(node), "args": [_encoded(a, node) for a in node.args], "kwargs": kwargs}
        nodes.append(entry)
    data = safetensors.torch.save(tensors)
    inputs = [
        {"name": i.name, "shape": list(i.shape), "dtype": str(i.dtype).removeprefix("torch."), "batch": i.batch}
        for i in graph.inputs
    ]
    ids = {graph.name(n): n.name for n in graph}
    content = {
        "format": FORMAT,
        "version": VERSION,
        "tensors": hashlib.sha256(data).hexdigest(),
        "inputs": inputs,
        "nodes": nodes,
        "outputs": [ids[name] for name in graph.outputs],
    }
    lines = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    return f"{lines}\n".encode(), data


def loads(text: bytes, tensors: bytes) -> Graph:
    """The graph of both files' bytes; raises `ModelError` with what is wrong."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"no graph: the JSON is damaged ({str(error).splitlines()[0]})") from error
    _need(isinstance(content, dict) and content.get("format") == FORMAT, "no graph of exactq")
    _need(content.get("version") == VERSION, f"version {content.get('version')!r} of the format; this exactq reads {VERSION}")
    _need(content.get("tensors") == hashlib.sha256(tensors).hexdigest(), "the tensors are damaged or of another graph")
    try:
        constants = safetensors.torch.load(tensors)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ModelError(f"the tensors cannot be read: {error}") from error
    try:
        return _graph(content, constants)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError(f"no graph: {type(error).__name__}: {error}") from error


def _graph(content: dict[str, Any], constants: dict[str, Tensor]) -> Graph:
    inputs = tuple(_input(entry) for entry in content["inputs"])
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    names: dict[str, str] = {}
    for entry in content["nodes"]:
        name, key = _text(entry["name"]), _identifier(entry["id"])
        if "call" in entry:
            target = _target(_text(entry["call"]))
            args = tuple(_decoded(a, nodes) for a in _list(entry["args"]))
            kwargs = {_identifier(k): _decoded(v, nodes) for k, v in entry["kwargs"].items()}
            _check_arguments(name, target, args, kwargs)
            node = graph.create_node("call_function", target, args, kwargs, name=key)
        elif "constant" in entry:
            path = _text(entry["constant"])
            _need(attribute_path(path, set(constants) - {path}) == path, f"'{path:.80}' cannot be the path of a constant")
            _need(path in constants, f"'{name}' reads the constant '{path}', which the tensors lack")
            node = graph.create_node("get_attr", path, name=key)
        else:
            node = graph.create_node("placeholder", key, name=key)
        _need(node.name == key, f"the id '{key}' is taken or reserved")
        nodes[key], names[key] = node, name
    used = {str(n.target) for n in graph.nodes if n.op == "get_attr"}
    _need(used == set(constants), f"the tensors {sorted(set(constants) - used)} belong to no constant")
    graph.output(tuple(_decoded({"node": key}, nodes) for key in _list(content["outputs"])))
    return Graph(fx.GraphModule(root_of(constants), graph), names, inputs)


def _need(holds: object, problem: str) -> None:
    if not holds:
        raise ModelError(problem)


def _input(entry: dict[str, Any]) -> Input:
    shape = _list(entry["shape"])
    _need(all(type(size) is int and 0 <= size < 2**63 for size in shape), f"the shape {shape} is no list of sizes")
    _need(type(entry["batch"]) is bool, f"batch is {entry['batch']!r}, neither true nor false")
    return Input(_text(entry["name"]), tuple(shape), _DTYPES[entry["dtype"]], batch=entry["batch"])


def _text(value: Any) -> str:
    _need(isinstance(value, str) and value.isprintable() and 0 < len(value) <= 500, f"{value!r:.80} is no name")
    return str(value)


def _list(value: Any) -> list[Any]:
    _need(isinstance(value, list), f"{value!r:.80} is no list")
    return list(value)


def _identifier(value: Any) -> str:
    """A name that may stand in the code which fx makes of a graph."""
    plain = isinstance(value, str) and value.isascii() and value.isidentifier() and not iskeyword(value)
    _need(plain and len(value) <= 500 and not value.startswith("__"), f"{value!r:.80} is no identifier")
    return str(value)


def _target_name(node: fx.Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        name = str(node.target)
    else:
        name = next((k for k, v in OPERATORS.items() if v is node.target), str(node.target))
    _target(name)
    return name


def _target(name: str) -> Any:
    """The operator of that name; raises `ModelError` for any other function, and for operators with effects."""
    if name in OPERATORS:
        return OPERATORS[name]
    namespace, *rest = name.split(".")
    if namespace not in ("aten", "quantized_decomposed") or len(rest) != 2 or not all(p.isidentifier() for p in rest):
        raise ModelError(f"the operator '{name:.80}' is not allowed: a graph calls aten and quantized_decomposed only")
    try:
        found = getattr(getattr(getattr(torch.ops, namespace), rest[0]), rest[1])
    except (AttributeError, RuntimeError) as error:
        raise ModelError(f"the operator '{name:.80}' is unknown to torch {torch.__version__}") from error
    if not isinstance(found, torch._ops.OpOverload) or str(found) != name:
        raise ModelError(f"'{name:.80}' is no operator")
    if found._schema.is_mutable or not found._schema.returns or rest[0] == "from_file":
        raise ModelError(f"the operator '{name}' is not allowed: it has effects besides its result")
    return found


def _check_arguments(name: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not isinstance(target, torch._ops.OpOverload):
        return
    known = [a.name for a in target._schema.arguments]
    twice = [k for k in kwargs if k in known[: len(args)]]
    missing = [a.name for a in target._schema.arguments[len(args) :] if not a.has_default_value() and a.name not in kwargs]
    if len(args) > len(known) or twice or missing or not set(kwargs) <= set(known):
        raise ModelError(f"'{name}' gives {target} {len(args)} arguments and {sorted(kwargs)}; it takes {known}")


def _encoded(value: Any, node: fx.Node) -> Any:
    """Numbers, strings and lists as they are; everything else as an object with one key that says what it is."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if value - value == 0 else {"float": str(value)}
        case fx.Node():
            return {"node": value.name}
        case list() | tuple():
            return [_encoded(v, node) for v in value]
        case torch.device():
            return None
        case torch.dtype() | torch.layout() | torch.memory_format():
            return {type(value).__name__: str(value).removeprefix("torch.")}
    raise ModelError(f"'{node.name}' has an argument of type {type(value).__name__}, which a graph file cannot hold")


def _decoded(value: Any, nodes: dict[str, fx.Node]) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list():
            return [_decoded(v, nodes) for v in value]
        case {"node": str(key)} if key in nodes and len(value) == 1:
            return nodes[key]
        case {"float": str(text)} if text in _FLOATS and len(value) == 1:
            return float(text)
        case dict() if len(value) == 1:
            ((kind, name),) = value.items()
            if isinstance(name, str) and name in _ENUMS.get(kind, {}):
                return _ENUMS[kind][name]
    raise ModelError(f"{value!r:.80} is no argument")
