"""Batch normalisation into the layer before it: w' = w·γ/σ, b' = (b − μ)·γ/σ + β, with σ = √(var + ε), for each channel.

The layer is a convolution (plain, grouped, depthwise, transposed; 1, 2 or 3 dimensions) or linear, with or without a bias. All
of it is computed in float64 and rounded once. The folded layer keeps the layer's name; readers of the normalisation read the
layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from exactq.errors import ModelError
from exactq.graphs.graph import Edit, Graph, arguments, op_name
from exactq.graphs.programs import COMPUTE, fake_values
from exactq.optimization.passes import Found, PassResult

aten = torch.ops.aten


def fold_batchnorm(graph: Graph) -> PassResult:
    """The graph with each batch normalisation folded that follows a layer; the others stay and say why.

    Raises `ModelError` where a fold would not be finite: a variance of 0 with ε = 0, a negative one, an overflow.
    """
    edit = Edit(graph)
    norms = [node for node in edit if node.op == "call_function" and node.target is aten.batch_norm.default]
    if not norms:
        return PassResult("batchnorm", graph)
    ranks = {name: value.ndim for name, value in fake_values(graph, batch=2).items()}
    found, kept, renames = [], [], {}
    for norm in norms:
        name = edit.value(norm)
        if reason := _reason_to_keep(edit, norm, ranks):
            kept.append(Found(name, f"{name} stays: {reason}"))
            continue
        layer: Any = norm.args[0]
        _fold(edit, layer, norm)
        found.append(Found(name, f"{name} folded into {edit.value(layer)}"))
        renames[name] = edit.value(layer)
        edit.replace(norm, layer)
    return PassResult("batchnorm", edit.freeze() if found else graph, tuple(found), renames, tuple(kept))


def _reason_to_keep(edit: Edit, norm: fx.Node, ranks: dict[str, int]) -> str:
    """Why the normalisation cannot be folded, or nothing."""
    args = arguments(norm)
    layer, statistics = args["input"], [args["running_mean"], args["running_var"]]
    kind = op_name(layer).removeprefix("aten.") if layer.op == "call_function" else ""
    if args["training"] or None in statistics:
        return "it normalises by the statistics of each batch"
    if kind not in COMPUTE:
        what = op_name(layer) if layer.op == "call_function" else "an input"
        return f"it reads {edit.value(layer)} ({what}), no convolution or linear layer{_padding_behind(edit, norm)}"
    if len(layer.users) > 1:
        others = [user for user in layer.users if user is not norm]
        readers = ", ".join("the output" if user.op == "output" else edit.value(user) for user in others)
        return f"{edit.value(layer)} is read by {readers} too"
    weight, bias = arguments(layer)["weight"], arguments(layer)["bias"]
    constants = [weight, bias, args["weight"], args["bias"], *statistics]
    if any(node is not None and node.op != "get_attr" for node in constants):
        return "its parameters or those of the layer before are computed, not constant"
    if ranks[edit.value(layer)] != edit.tensor(weight).ndim:
        return f"its channels are not those of {edit.value(layer)}, whose result has {ranks[edit.value(layer)]} dimensions"
    return ""


def _padding_behind(edit: Edit, norm: fx.Node) -> str:
    for user in norm.users:
        if user.op == "call_function" and op_name(user).removeprefix("aten.conv").startswith(("1d", "2d", "3d")):
            padding = arguments(user)["padding"]
            if padding not in ("valid", 0) and any(padding):
                return f", and {edit.value(user)} behind it pads with zeros, which a shifted input would not have"
    return ""


def _fold(edit: Edit, layer: fx.Node, norm: fx.Node) -> None:
    args, own = arguments(norm), arguments(layer)
    name = edit.value(norm)
    weight, bias = edit.tensor(own["weight"]), edit.tensor(own["bias"]) if own["bias"] is not None else None
    mean, var = (edit.tensor(args[key]).double() for key in ("running_mean", "running_var"))
    gamma, beta = (edit.tensor(args[key]).double() if args[key] is not None else None for key in ("weight", "bias"))
    scale = (1 if gamma is None else gamma) / (var + args["eps"]).sqrt()  # float64 (channels,)
    shift = (0 if bias is None else bias.double()) - mean
    folded_bias = (shift * scale + (0 if beta is None else beta)).to(weight.dtype)
    folded = _scale_channels(weight.double(), scale, layer, groups=own.get("groups", 1)).to(weight.dtype)
    _refuse_not_finite(name, folded_bias, var, args["eps"])
    _refuse_not_finite(name, _channels_first(folded, layer, groups=own.get("groups", 1)), var, args["eps"])
    with edit.graph.inserting_before(layer):
        _set(edit, layer, "weight", own["weight"], folded, edit.value(own["weight"]))
        _set(edit, layer, "bias", own["bias"], folded_bias, _bias_name(edit, layer, own["weight"]))


def _scale_channels(weight: Tensor, scale: Tensor, layer: fx.Node, *, groups: int) -> Tensor:
    """Each output channel of `weight` times its scale; transposed: (in, out/g, …), where in is g blocks of in/g."""
    if "transpose" not in op_name(layer):
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    blocks = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return (blocks * scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)


def _channels_first(weight: Tensor, layer: fx.Node, *, groups: int) -> Tensor:
    """The weight as (out, everything else)."""
    if "transpose" not in op_name(layer):
        return weight.flatten(1)
    blocks = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return blocks.transpose(1, 2).reshape(groups * weight.shape[1], -1)


def _refuse_not_finite(name: str, folded: Tensor, var: Tensor, eps: float) -> None:
    finite = torch.isfinite(folded)
    bad = ~(finite if folded.ndim == 1 else finite.all(1))
    if bool(bad.any()):
        channel = int(bad.nonzero()[0])
        raise ModelError(
            f"`{name}` cannot be folded: channel {channel} with variance {var[channel].item():g} and eps {eps:g} "
            f"gives a weight or bias that is not finite; a normalisation needs variance + eps > 0 and a moderate scale"
        )


def _bias_name(edit: Edit, layer: fx.Node, weight: fx.Node) -> str:
    """`conv1.bias` beside `conv1.weight`."""
    *path, leaf = edit.value(weight).split(".")
    return ".".join([*path, "bias"]) if leaf == "weight" else f"{edit.value(layer)}.bias"


def _set(edit: Edit, layer: fx.Node, argument: str, old: fx.Node | None, value: Tensor, name: str) -> None:
    """Give the layer a constant: its own one changed, or a new one where it has none or others read it too."""
    if old is not None and len(old.users) == 1:
        edit.set_constant(old, value)
    else:
        layer.args, layer.kwargs = tuple((arguments(layer) | {argument: edit.constant(name, value)}).values()), {}
