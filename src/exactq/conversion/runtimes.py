"""A module that others quantized as a `Runtime`: what it answers, and what its own quantized modules made on the way.

Nothing of it is copied or changed: hooks are there while it runs. It runs on one thread, for ATen's loops over codes round the
ends of each thread's part otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from exactq.targets.pytorch.runtime import engine, threads
from exactq.targets.target import Runtime
from exactq.traces import Trace

BEHIND = ".activation_post_process"
"""Where eager mode keeps what observes or encodes a module's result, and where a QFunctional hands its results through."""

See = Callable[[str, Any], None]
"""A value's name as the module has it, and the value."""


@dataclass(frozen=True)
class Around:
    """The names of the reals around a dynamic layer: of what it reads, and of what it makes; with `relu` behind a relu."""

    reads: str
    makes: str
    relu: bool


def converted(
    module: nn.Module,
    target: str,
    spots: Mapping[str, Mapping[str, str]],
    rename: Mapping[str, tuple[str, int]],
    dynamic: Mapping[str, Sequence[Around]] | None = None,
) -> Runtime:
    """The runtime of a converted module: codes by the names that the emulator uses.

    `spots` has for each FX graph in it, by path, node name -> name; `rename` says of a mark's name which value it is, and how
    far its codes were moved; `dynamic` has for each dynamic layer, by its path, the reals of its calls.
    """

    def trace(inputs: Sequence[Tensor]) -> Trace:
        kept: Trace = {}

        def see(name: str, value: Any) -> None:
            if not isinstance(value, Tensor) or not (value.is_quantized or value.dtype in (torch.int8, torch.uint8)):
                return
            known, shift = rename.get(name, (name, 128 if value.dtype in (torch.qint8, torch.int8) else 0))
            codes = ((value.int_repr() if value.is_quantized else value).to(torch.int16) + shift).to(torch.uint8)
            kept.setdefault(f"{known}/codes", codes)

        with _seen(module, spots, see), _around(module, dynamic or {}, kept), _running(target):
            module(*inputs)
        return kept

    def run(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with _running(target):
            return _flat(module(*inputs))

    return Runtime(run, trace, _operators(module))


@contextmanager
def _around(module: nn.Module, dynamic: Mapping[str, Sequence[Around]], kept: Trace) -> Iterator[None]:
    """A context in which the reals that dynamic layers read and make are kept, as they are then."""

    def told(calls: Iterable[Around]) -> Callable[..., None]:
        coming = iter(calls)

        def hook(_: nn.Module, read: tuple[Tensor, ...], made: Tensor) -> None:
            if (names := next(coming, None)) is not None:
                kept.setdefault(names.reads, read[0].clone())
                kept.setdefault(names.makes, made.clamp(min=0) if names.relu else made.clone())

        return hook

    handles = [module.get_submodule(path).register_forward_hook(told(calls)) for path, calls in dynamic.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def prepared(
    module: nn.Module,
    target: str,
    spots: Mapping[str, Mapping[str, str]],
    rename: Mapping[str, tuple[str, int]],
    borders: Mapping[str, str],
) -> Runtime:
    """The runtime of a prepared module, whose observers stand still: fake-quantized reals by value name.

    An encoded input is there under the input's name too (`borders`), whatever stands between the two.
    """

    def trace(inputs: Sequence[Tensor]) -> Trace:
        kept: Trace = {}

        def see(name: str, value: Any) -> None:
            if name in rename and isinstance(value, Tensor):
                for known in {rename[name][0], borders.get(name, rename[name][0])}:
                    kept.setdefault(known, value.detach().clone())

        with _seen(module, spots, see, marks=True), _running(target):
            module(*inputs)
        return kept

    def run(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with _running(target):
            return _flat(module(*inputs))

    return Runtime(run, trace, _operators(module))


@contextmanager
def _running(target: str) -> Iterator[None]:
    """No gradients, one thread, and the engine `target` where it is one of PyTorch's."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(threads(1))
        if target in torch.backends.quantized.supported_engines:
            stack.enter_context(engine(target))
        yield


@contextmanager
def _seen(module: nn.Module, spots: Mapping[str, Mapping[str, str]], see: See, *, marks: bool = False) -> Iterator[None]:
    """A context in which `see` is told what modules and nodes of FX graphs make; with `marks` only observed values."""
    calls: dict[str, int] = {}
    handles, graphs = [], []

    def told(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, made: Any) -> None:
            number = calls[path] = calls.get(path, -1) + 1
            see(f"{path}_{number}" if number else path, made)

        return hook

    for path, part in module.named_modules():
        if path in spots and isinstance(part, fx.GraphModule):
            graphs.append(part)
            part.forward = _Watched(part, spots[path], see).run
        elif path and (path.endswith(BEHIND) or not marks):
            handles.append(part.register_forward_hook(told(path.removesuffix(BEHIND))))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for graph in graphs:
            del graph.forward


class _Watched(fx.Interpreter):
    """The graph's own calls, one after the other, each result shown."""

    def __init__(self, module: fx.GraphModule, names: Mapping[str, str], see: See) -> None:
        super().__init__(module)
        self.names, self.see = names, see

    def run_node(self, n: fx.Node) -> Any:
        """What the node makes."""
        made = super().run_node(n)
        if n.name in self.names:
            self.see(self.names[n.name], made)
        return made


def _flat(answer: Any) -> tuple[Tensor, ...]:
    """The tensors of an answer in order, decoded."""
    leaves = [x for x in pytree.tree_leaves(answer) if isinstance(x, Tensor)]
    return tuple(x.dequantize() if x.is_quantized else x for x in leaves)


def _operators(module: nn.Module) -> dict[str, int]:
    """How often each kind of leaf module is there."""
    counts: dict[str, int] = {}
    for part in module.modules():
        if not list(part.children()):
            counts[type(part).__name__] = counts.get(type(part).__name__, 0) + 1
    return dict(sorted(counts.items()))
