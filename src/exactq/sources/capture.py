"""An `nn.Module` and example inputs -> a `Graph`: functional, unlifted ATen with module-path names and a free batch.

`torch.export` traces, `run_decompositions({})` makes it functional while convolution, linear and the like stay whole. Batch
normalisation is put back into its one operator, `split` and `unbind` become the slices that are read, and a view that only
carries the batch size loses its symbolic arithmetic. What still has several results (`lstm`, `gru`, `topk`,
`adaptive_max_pool`) is one tuple value and a `getitem` for each result.
"""

from __future__ import annotations

import logging
import operator
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from inspect import signature
from io import StringIO
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from exactq.errors import DataError, ModelError
from exactq.graphs.graph import Graph, Input, arguments, attribute_path, op_name, root_of, unique
from exactq.graphs.graph import constant as constant_of
from exactq.sources.captured import Captured

aten = torch.ops.aten


def capture(model: nn.Module, inputs: Sequence[Tensor] | Mapping[str, Tensor], *, batch: bool = True) -> Graph:
    """The graph of `model` in evaluation mode, traced on `inputs` (a mapping: keyword arguments); the model stays as it is.

    `batch` leaves dimension 0 of every input free; where the model fixes its batch size, the graph does so too. Outputs of
    any nesting come flat, in order; what is not a tensor is dropped. Constants are copies of the model's tensors. Raises
    `ModelError` with the operator or the source line where the model cannot be traced, `DataError` where the model refuses
    the inputs. A model that is a graph already, as a file's is, gives that graph.
    """
    args, kwargs = _arguments(inputs)
    if isinstance(model, Captured):
        return model.taking([*args, *kwargs.values()], batch=batch)
    with _evaluating(model), _quiet():
        try:
            model(*pytree.tree_map(torch.clone, args), **pytree.tree_map(torch.clone, kwargs))  # it may write on its inputs
        except Exception as error:
            shapes = ", ".join(str(tuple(x.shape)) for x in (*args, *kwargs.values()))
            raise DataError(f"the model refuses inputs of shape {shapes}: {_first_line(error)} ({_where(error)})") from error
        exported, free = _export(model, args, kwargs, batch=batch)
        try:
            exported = exported.run_decompositions({})
            module: Any = exported.module(check_guards=False)
        except Exception as error:
            raise ModelError(f"the model cannot be made functional: {_reason(error)} ({_where(error)})") from error
    graph = _named(module, _flat_inputs(exported, args, kwargs), model, free=free)
    _refuse_side_effects(graph)
    return graph


def _arguments(inputs: Sequence[Tensor] | Mapping[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), {})
    named: dict[str, Any] = {f"input {n}": x for n, x in enumerate(args)} | {f"input '{k}'": x for k, x in kwargs.items()}
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise DataError(f"{name} is of type {type(value).__name__}: the model's inputs have to be tensors, without nesting")
    return args, kwargs


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode without gradients; every module's own mode comes back, and every buffer's value."""
    modes = [(m, m.training) for m in model.modules()]
    buffers = [(m, name, b, b.clone()) for m in model.modules() for name, b in m._buffers.items() if b is not None]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer
                if not torch.equal(buffer, value):  # only what changed: others may read the buffer at this moment
                    buffer.copy_(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's own talk: what goes wrong is in the exception."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):  # export prints the graph of what it refuses
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _export(model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], *, batch: bool) -> tuple[Any, bool]:
    sizes = {x.shape[0] if x.ndim else 0 for x in (*args, *kwargs.values())}
    if batch and len(sizes) == 1 and 0 not in sizes:
        # A batch of one would be taken for a constant; two of each sample stand for any number.
        # Copies, because a failed export leaves its marks on the tensors it was given.
        two_args, two_kwargs = pytree.tree_map(lambda x: torch.cat([x, x]) if x.shape[0] == 1 else x.clone(), (args, kwargs))
        try:
            exported = torch.export.export(
                model, two_args, two_kwargs, dynamic_shapes=_free_batch(model, args, kwargs), strict=False
            )
        except Exception:  # a fixed batch is a stated decision, and the next trace says what is really wrong
            pass
        else:
            return exported, not any(isinstance(size, int) for size in _batch_sizes(exported))
    try:
        return torch.export.export(model, args, kwargs, strict=False), False
    except Exception as error:
        raise ModelError(f"the model cannot be captured: {_reason(error)} ({_where(error)})") from error


def _free_batch(model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> dict[str, Any]:
    """`torch.export`'s description of shapes, in the structure of the model's own signature."""
    # torch refuses free sizes below `**kwargs`: tensors that come in there have a fixed batch.
    bound = signature(model.forward).bind(*args, **kwargs).arguments
    return pytree.tree_map(lambda _: {0: torch.export.Dim.DYNAMIC}, dict(bound))


def _batch_sizes(exported: Any) -> list[Any]:
    placeholders = {n.name: n for n in exported.graph.nodes if n.op == "placeholder"}
    return [placeholders[name].meta["val"].shape[0] for name in exported.graph_signature.user_inputs]


def _flat_inputs(exported: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> list[Tensor]:
    """The example tensors in the order of the graph's placeholders."""
    order = list(exported.example_inputs[1])
    return [*args, *(kwargs[name] for name in order)]


def _named(module: fx.GraphModule, inputs: list[Tensor], model: nn.Module, *, free: bool) -> Graph:
    """The traced module as a `Graph`: flat outputs, flat names, one node a constant, nothing of the user's machine."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.op == "call_module" or node.target is aten._assert_tensor_metadata.default:  # torch's guards
            graph.erase_node(node)
    _without_state(graph)
    _whole_batch_norm(graph)
    _one_result_each(graph)
    _plain_views(graph)
    _flat_outputs(graph)
    _one_node_a_constant(graph)
    graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
    graph.set_codegen(fx.graph.CodeGen())
    names = _names(graph, _first_names(model))
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    constants: dict[str, Tensor] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            value = constant_of(module, node)
            _refuse_not_finite(names[node.name], value, parameter=str(node.target) in parameters)
            node.target = attribute_path(names[node.name], constants)
            constants[node.target] = value.clone(memory_format=torch.contiguous_format)
        node.meta.clear()
    rebuilt = fx.GraphModule(root_of(constants), graph)
    places = [names[n.name] for n in graph.nodes if n.op == "placeholder"]
    specs = tuple(
        Input(name, tuple(x.shape), x.dtype, batch=free and x.ndim > 0) for name, x in zip(places, inputs, strict=True)
    )
    return Graph(rebuilt, names, specs)


def _refuse_not_finite(name: str, value: Tensor, *, parameter: bool) -> None:
    """Raise for a NaN anywhere, and for an infinity in a parameter; a buffer may hold one, as attention masks do."""
    if not value.is_floating_point():
        return
    bad = ~torch.isfinite(value) if parameter else torch.isnan(value)
    if not bool(bad.any()):
        return
    first = tuple(bad.nonzero()[0].tolist())
    kind = "a NaN" if bool(torch.isnan(value[first])) else "an infinity"
    counted = f"{int(bad.sum())} of {value.numel()} values are not finite"
    raise ModelError(f"`{name}` has {kind} at index {first} ({counted}): a grid needs finite values")


def _without_state(graph: fx.Graph) -> None:
    """Drop what is written back to an input, whose new value is read directly; a buffer that changes is refused."""
    for node in list(graph.nodes):
        if node.target is not aten.copy_.default:
            continue
        place, value = node.args[:2]
        if place.op == "get_attr":
            raise ModelError(f"the model changes its own '{place.target}' at each call, which a graph without state cannot do")
        node.replace_all_uses_with(value)
        graph.erase_node(node)


def _whole_batch_norm(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.target is aten._native_batch_norm_legit_no_training.default:
            x, weight, bias, mean, var, momentum, eps = node.args
            whole = (x, weight, bias, mean, var, False, momentum, eps, False)
        elif node.target is aten._native_batch_norm_legit.no_stats:  # a layer without running statistics takes the batch's own
            x, weight, bias, training, momentum, eps = node.args
            whole = (x, weight, bias, None, None, training, momentum, eps, False)
        else:
            continue
        _first_result(graph, node, aten.batch_norm.default, whole)


def _first_result(graph: fx.Graph, node: fx.Node, target: Any, args: tuple[Any, ...]) -> None:
    """Put `target(*args)` in the place of the first result of `node`, if that is the only one that is read."""
    if any(user.target is not operator.getitem or (user.args[1] != 0 and user.users) for user in node.users):
        return
    with graph.inserting_before(node):
        whole = graph.call_function(target, args)
    for user in list(node.users):
        if user.args[1] == 0:
            whole.meta = dict(user.meta)
        user.replace_all_uses_with(whole)
        graph.erase_node(user)
    graph.erase_node(node)


def _one_result_each(graph: fx.Graph) -> None:
    """`split`, `split_with_sizes`, `unbind` and `max_pool2d_with_indices` as operators with one result."""
    for node in list(graph.nodes):
        if node.target is aten.max_pool2d_with_indices.default:
            _first_result(graph, node, aten.max_pool2d.default, tuple(node.args))
        if node.target not in (aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int):
            continue
        x, dim = node.args[0], arguments(node)["dim"]
        size = x.meta["val"].shape[dim]
        if not isinstance(size, int) or any(user.target is not operator.getitem for user in node.users):
            continue
        starts = _starts(node, size)
        for user in list(node.users):
            index = user.args[1]
            with graph.inserting_before(user):
                if node.target is aten.unbind.int:
                    part = graph.call_function(aten.select.int, (x, dim, index))
                else:
                    part = graph.call_function(aten.slice.Tensor, (x, dim, starts[index], starts[index + 1]))
            part.meta = dict(user.meta)
            user.replace_all_uses_with(part)
            graph.erase_node(user)
        graph.erase_node(node)


def _starts(node: fx.Node, size: int) -> list[int]:
    if node.target is aten.unbind.int:
        return []
    sizes: Any = node.args[1]
    if isinstance(sizes, int):
        return [*range(0, size, sizes), size] if sizes else [0, size]
    return [sum(sizes[:n]) for n in range(len(sizes) + 1)]


def _plain_views(graph: fx.Graph) -> None:
    """Shapes in literals: a view has -1 for the size that depends on the batch, an expansion -1 for one that stays."""
    for node in list(graph.nodes):
        if node.target in (aten.view.default, aten.reshape.default, aten._unsafe_view.default):
            x, size = node.args
            known = list(node.meta["val"].shape)
            if sum(not isinstance(d, int) for d in known) <= 1:
                size = [d if isinstance(d, int) else -1 for d in known]
            node.target, node.args = aten.view.default, (x, size)
        elif node.target is aten.expand.default:
            x, size = node.args[:2]
            before, after = list(x.meta["val"].shape), list(node.meta["val"].shape)
            new = len(after) - len(before)
            size = [
                -1 if n >= new and isinstance(d, fx.Node) and str(before[n - new]) == str(after[n]) else d
                for n, d in enumerate(size)
            ]
            node.args = (x, size)


def _flat_outputs(graph: fx.Graph) -> None:
    (out,) = (n for n in graph.nodes if n.op == "output")
    leaves = [n for n in pytree.tree_leaves(out.args[0]) if isinstance(n, fx.Node)]
    tensors = tuple(n for n in leaves if n.op == "get_attr" or isinstance(n.meta.get("val"), Tensor))
    if not tensors:
        raise ModelError("the model returns no tensor")
    out.args = (tensors,)


def _one_node_a_constant(graph: fx.Graph) -> None:
    first: dict[str, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op == "get_attr" and first.setdefault(str(node.target), node) is not node:
            node.replace_all_uses_with(first[str(node.target)])
            graph.erase_node(node)


def _first_names(model: nn.Module) -> dict[str, str]:
    """Every path of a parameter or buffer -> the first path of the same tensor."""
    first: dict[int, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {path: first.setdefault(id(tensor), path) for path, tensor in tensors}


def _names(graph: fx.Graph, first_names: Mapping[str, str]) -> dict[str, str]:
    """fx node name -> value name: the module path for a module's only operator, path.operator otherwise."""
    calls = [n for n in graph.nodes if n.op == "call_function"]
    stacks = {n: _stack(n) for n in calls}
    per_call = Counter(stacks[n][0] for n in calls if not _is_bookkeeping(n))
    names: dict[str, str] = {}
    taken: set[str] = set()

    def give(node: fx.Node, wanted: str) -> None:
        names[node.name] = unique(wanted, taken)
        taken.add(names[node.name])

    for node in graph.nodes:
        if node.op == "placeholder":
            give(node, str(node.target))
        elif node.op == "get_attr":
            give(node, first_names.get(str(node.target)) or _constant_name(node, stacks))
    for node in calls:
        key, path, kind = stacks[node]
        producer = node.args[0] if node.target is operator.getitem else None
        whole = kind.startswith("torch.nn.modules.") and "container" not in kind and per_call[key] == 1 and path
        if isinstance(producer, fx.Node):
            give(node, f"{names[producer.name]}.{node.args[1]}")
        elif whole and not _is_bookkeeping(node):
            give(node, path)
        else:
            give(node, f"{path}.{_operator_word(node)}" if path else _operator_word(node))
    return names


def _stack(node: fx.Node) -> tuple[str, str, str]:
    """The innermost module that called the operator: a key for this very call of it, its path, its class."""
    stack = list((node.meta.get("nn_module_stack") or {}).items())
    key, (path, kind) = stack[-1] if stack else ("", ("", ""))
    if "metadata_hook" in key:  # bookkeeping that belongs to no module
        return "", "", ""
    return key, path, kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


def _is_bookkeeping(node: fx.Node) -> bool:
    """Whether the call is no operator of the module's own: a size, the choice of a result, a start of zeros."""
    return node.target is operator.getitem or _is_size(node) or all(_is_size(n) for n in node.all_input_nodes)


def _is_size(node: fx.Node) -> bool:
    arithmetic = node.op == "call_function" and not isinstance(node.target, torch._ops.OpOverload)
    return node.target is aten.sym_size.int or (arithmetic and node.target is not operator.getitem)


def _constant_name(node: fx.Node, stacks: Mapping[fx.Node, tuple[str, str, str]]) -> str:
    """The constant's own path; a tensor that was made inside `forward` is named after the module that reads it."""
    target = str(node.target)
    if not re.fullmatch(r"(.*\.)?(lifted_tensor_|_tensor_constant)\d+", target):
        return target
    paths = [stacks[user][1] for user in node.users if user in stacks]
    return f"{paths[0]}.constant" if paths and paths[0] else "constant"


def _operator_word(node: fx.Node) -> str:
    word = op_name(node).split(".")[-1].strip("_")
    return {"view": "reshape", "unsafe_view": "reshape"}.get(word, word)


def _refuse_side_effects(graph: Graph) -> None:
    for node in graph.calls:
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.is_mutable:
            raise ModelError(f"'{graph.name(node)}' ({op_name(node)}) changes its input in place and cannot be quantized")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _reason(error: BaseException) -> str:
    text = str(error)
    if "data-dependent" in text:
        return "its control flow depends on the data (`if`, `while`, `int()` or `.item()` of a tensor), which no graph can hold"
    if found := re.search(r"aten[.:]+\w+(?:\.\w+)?", text):
        return f"{_first_line(error)} [operator {found.group(0)}]"
    return _first_line(error)


def _where(error: BaseException) -> str:
    """The user's own line that failed: the last frame outside torch, or the last such place that the message names."""
    place = None
    tb = error.__traceback__
    while tb is not None:
        filename = tb.tb_frame.f_code.co_filename
        if not re.search(r"[/\\](torch|exactq|site-packages)[/\\]|^<", filename):
            place = f"{filename}, line {tb.tb_lineno}"
        tb = tb.tb_next
    for filename, line in re.findall(r'File "([^"]+)", line (\d+)', str(error)):
        if not re.search(r"[/\\](torch|site-packages)[/\\]|^<", filename):
            place = f"{filename}, line {line}"
    return f"at {place}" if place else "the source line is not known"
