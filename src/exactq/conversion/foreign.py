"""A module that others quantized or prepared -> our `Quantized`, beside the module itself as a runtime.

The model is traced with stand-ins in the places of its quantized parts (`standins`), and the marks that they leave become a
plan whose grids are given (`given`). The module is not changed, nor copied where it holds packed weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.ao.quantization import DeQuantStub

from exactq.conversion import graphmode, runtimes
from exactq.conversion.converted import DYNAMIC, is_converted, stand_in
from exactq.conversion.exported import Rewriting, is_exported
from exactq.conversion.fakequant import Used, fakes, observes, stop_observing, used
from exactq.conversion.given import Given, WeightGrid, given
from exactq.conversion.prepared import Jump, activation, is_layer, is_prepared, jump, layer
from exactq.conversion.standins import Decode, Layer, Mark, Place
from exactq.errors import ModelError, UsageError
from exactq.graphs.graph import Graph
from exactq.graphs.qdq import DEQUANTIZE
from exactq.plans.build import weight_and_bias
from exactq.quantized import Quantized
from exactq.sources.capture import capture
from exactq.targets import target_named
from exactq.targets.target import Runtime, Target

EXPORTED = "onnxruntime"
"""The target of PT2E graphs, which are made for no engine of PyTorch's, unless another is named."""

Kind = Literal["prepared", "converted"]
Mode = Literal["eager", "fx", "pt2e"]


@dataclass(frozen=True, eq=False)
class Foreign:
    """A model that others prepared or converted: on its own grids as `quantized`, and as it runs itself.

    `runtime.trace` of a converted model gives the codes that its modules make, named as the emulator's steps (`fc1/codes`); of
    a prepared one its fake-quantized reals by value name (`fc1`). `jumps` are the grids that `convert` would not have kept.
    """

    kind: Kind
    mode: Mode
    quantized: Quantized
    runtime: Runtime
    jumps: tuple[Jump, ...] = ()


def is_foreign(model: object) -> bool:
    """Whether anything in the model was quantized or prepared by torch.ao or torchao."""
    return isinstance(model, nn.Module) and any(is_converted(m) or is_prepared(m) or _quantizes(m) for m in model.modules())


_RESTLESS = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


def _quantizes(module: nn.Module) -> bool:
    """Whether an FX graph quantizes by itself."""
    if not isinstance(module, fx.GraphModule):
        return False
    return any(n.target is torch.quantize_per_tensor or n.target in DEQUANTIZE for n in module.graph.nodes)


def foreign(model: nn.Module, example_inputs: Sequence[Tensor], *, target: str | None = None) -> Foreign:
    """The model as ours. `target` None: the engine that PyTorch is set to, `torch.backends.quantized.engine`; PT2E: `EXPORTED`.

    Raises `ModelError` where nothing in it is quantized, where it was prepared but never calibrated, and for parts that are not
    read, by their place; `UsageError` for a model in training mode.
    """
    if not is_foreign(model):
        raise ModelError(
            f"nothing in this {type(model).__name__} is quantized or prepared: it has no quantized module and no fake "
            "quantization. Prepare it with torch.ao or torchao, or give the float model to exactq.quantize"
        )
    if name := next(
        (name for name, m in model.named_modules() if m.training and isinstance(m, _RESTLESS) and not is_converted(m)), None
    ):
        raise UsageError(f"`{name}` is in training mode: call eval() first, so that normalization and dropout stand still")
    if isinstance(model, fx.GraphModule) and is_exported(model):
        return _exported(model, example_inputs, *target_named(target or EXPORTED))
    chosen, isa = target_named(target or torch.backends.quantized.engine)
    if any(is_converted(m) or _quantizes(m) for m in model.modules()):
        return _converted(model, example_inputs, chosen, isa)
    return _prepared(model, example_inputs, chosen, isa)


def _mode(model: nn.Module) -> Mode:
    return "fx" if any(isinstance(m, fx.GraphModule) for m in model.modules()) else "eager"


def _converted(model: nn.Module, inputs: Sequence[Tensor], target: Target, isa: str) -> Foreign:
    leaves: dict[int, Any] = {id(m): stand_in(m, name) for name, m in model.named_modules() if is_converted(m)}
    traced, spots = _traced(model, leaves, {})
    made = _given(traced, inputs, target, isa, by="by the quantized module")
    around = _around(model, made.quantized)
    runtime = runtimes.converted(model, target.name, spots, made.names, around)
    return Foreign("converted", _mode(model), made.quantized, runtime)


def _around(model: nn.Module, quantized: Quantized) -> dict[str, list[runtimes.Around]]:
    """The reals around each call of each dynamic layer of the model, as the emulator's steps call them, by the layer's path."""
    paths = {f"{name}.weight".lstrip("."): name for name, module in model.named_modules() if type(module) in DYNAMIC}
    graph = quantized.float_graph
    found: dict[str, list[runtimes.Around]] = {}
    for step in quantized.program().steps:
        if step.shown and step.covers:
            weight = graph.name(weight_and_bias(graph.node(step.covers[0]))[0])
            around = runtimes.Around(step.inputs[0], step.name, relu=len(step.covers) > 1)
            found.setdefault(paths[weight], []).append(around)
    return found


def _exported(model: fx.GraphModule, inputs: Sequence[Tensor], target: Target, isa: str) -> Foreign:
    rewritten = Rewriting(model, used)
    converted = _quantizes(model)
    marked = capture(rewritten.module, inputs, batch=rewritten.free)
    constants = marked.constants
    weights = {name: grid for name, grid in rewritten.weights.items() if name in constants}
    by = "by the quantized graph" if converted else "by the fake quantization"
    made = given(marked, weights, target=target, isa=isa, by=by, rounded_in_training=converted)
    spots = {"": rewritten.spots}
    if converted:
        return Foreign("converted", "pt2e", made.quantized, runtimes.converted(model, target.name, spots, made.names))
    jumps = tuple(j for name, u in rewritten.found.items() if (j := jump(name, u)) is not None)
    runtime = runtimes.prepared(_standing_still(model), target.name, spots, made.names, made.inputs)
    return Foreign("prepared", "pt2e", made.quantized, runtime, jumps)


def _prepared(model: nn.Module, inputs: Sequence[Tensor], target: Target, isa: str) -> Foreign:
    leaves: dict[int, Any] = {}
    places: dict[str, Place] = {}
    found: dict[str, Used] = {}
    inside: list[str] = []
    for name, module in model.named_modules(remove_duplicate=False):
        if any(name.startswith(f"{path}.") for path in inside):
            continue
        if is_layer(module):
            behind, place = getattr(module, "activation_post_process", None), None
            if behind is not None:
                place, found[name] = activation(behind, name)
            leaves[id(module)], found[f"{name}.weight"] = layer(module, name, place)
            inside.append(name)
        elif fakes(module) or observes(module):
            owner = name.removesuffix(".activation_post_process")
            places[name], found[owner] = activation(module, owner)
            leaves[id(module)] = Mark(places[name])
            inside.append(name)
        elif isinstance(module, DeQuantStub):
            leaves[id(module)] = Decode()
    traced, spots = _traced(model, leaves, places)
    made = _given(traced, inputs, target, isa, by="by the fake quantization", rounded=False)
    known = {name: value for graph in spots.values() for name, value in graph.items()}
    jumps = tuple(j for name, u in found.items() if (j := jump(known.get(name, name), u)) is not None)
    still = _standing_still(model)
    runtime = runtimes.prepared(still, target.name, spots, made.names, made.inputs)
    return Foreign("prepared", _mode(model), made.quantized, runtime, jumps)


def _standing_still(model: nn.Module) -> nn.Module:
    """A copy whose fake quantizations see nothing any more: each forward pass is then the same function."""
    still = copy.deepcopy(model)
    still.apply(stop_observing)
    return still


Spots = dict[str, dict[str, str]]


def _traced(model: nn.Module, leaves: dict[int, Any], places: Mapping[str, Place]) -> tuple[nn.Module, Spots]:
    """The model with stand-ins in the places of `leaves`, its FX graphs rewritten, and what those encode, by path."""
    made = copy.deepcopy(model, leaves)
    spots: Spots = {}
    for path, module in list(made.named_modules()):
        if isinstance(module, fx.GraphModule):
            prefix = f"{path}." if path else ""
            inside = {name.removeprefix(prefix): place for name, place in places.items() if name.startswith(prefix)}
            spots[path] = graphmode.rewrite(module, prefix, inside)
    return made.eval(), spots


def _given(traced: nn.Module, inputs: Sequence[Tensor], target: Target, isa: str, *, by: str, rounded: bool = True) -> Given:
    marked = capture(traced, inputs)
    return given(marked, _weights(traced, marked), target=target, isa=isa, by=by, rounded_in_training=rounded)


def _weights(traced: nn.Module, marked: Graph) -> dict[str, WeightGrid]:
    """The grid of each weight, by the name of the constant in the traced graph."""
    constants = marked.constants
    found = {}
    for path, module in traced.named_modules(remove_duplicate=False):
        if isinstance(module, Layer):
            name = f"{path}.weight" if path else "weight"
            if name in constants:
                found[name] = module.grid
    return found
