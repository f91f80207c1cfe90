"""One operator for one meaning, with the same bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exactq.graphs.graph import op_name
from exactq.graphs.programs import program
from exactq.optimization.canonical import canonicalize
from exactq.sources.capture import capture
from exactq.traces import walk

SPECIAL = torch.tensor([0.0, -0.0, 1e-45, -1.5, float("inf"), float("-inf"), float("nan"), 7.0, 6.0]).reshape(1, 1, 3, 3)

SPELLINGS: dict[str, tuple[Callable[[Tensor], Tensor], str, tuple[object, ...]]] = {
    "relu": (F.relu, "aten.relu", ()),
    "relu in place": (lambda x: F.relu_(x.clone()), "aten.relu", ()),
    "clamp from zero": (lambda x: x.clamp(min=0), "aten.relu", ()),
    "relu6": (F.relu6, "aten.clamp", (0.0, 6.0)),
    "nn.ReLU6": (nn.ReLU6(), "aten.clamp", (0.0, 6.0)),
    "hardtanh": (F.hardtanh, "aten.clamp", (-1.0, 1.0)),
    "clip": (lambda x: x.clip(-2, 2), "aten.clamp", (-2, 2)),
    "clamp": (lambda x: x.clamp(-1.5, None), "aten.clamp", (-1.5, None)),
    "clamp_min": (lambda x: torch.clamp_min(x, 1.0), "aten.clamp", (1.0, None)),
    "clamp_max": (lambda x: torch.clamp_max(x, 1.0), "aten.clamp", (None, 1.0)),
    "clamp from -0": (lambda x: x.clamp(min=-0.0), "aten.clamp", (-0.0, None)),
    "zero padding": (lambda x: F.pad(x, (1, 2)), "aten.constant_pad_nd", ([1, 2], 0.0)),
    "padding": (lambda x: F.pad(x, (1, 2), value=-1.0), "aten.constant_pad_nd", ([1, 2], -1.0)),
    "reflection": (lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect"), "aten.reflection_pad2d", ([1, 2, 0, 1],)),
    "replication": (lambda x: F.pad(x, (1, 2, 0, 1), mode="replicate"), "aten.replication_pad2d", ([1, 2, 0, 1],)),
}


class Net(nn.Module):
    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_each_spelling_becomes_the_one_operator_bit_for_bit(spelling: str) -> None:
    f, operator, arguments = SPELLINGS[spelling]
    graph = capture(Net(f), (torch.randn(2, 1, 3, 3),))
    result = canonicalize(graph)
    last = result.graph.calls[-1]
    assert op_name(last) == operator
    assert repr(tuple(last.args[1:])) == repr(arguments)
    assert result.graph.outputs == graph.outputs
    (before,), (after,) = walk(program(graph), (SPECIAL,)), walk(program(result.graph), (SPECIAL,))
    assert torch.equal(before.view(torch.int32), after.view(torch.int32))
    assert canonicalize(result.graph).graph is result.graph


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4), (1, 2)])
@pytest.mark.parametrize("dilation", [1, 3])
def test_paddings_by_name_become_numbers(padding: str, kernel: tuple[int, int], dilation: int) -> None:
    torch.manual_seed(0)
    graph = capture(nn.Conv2d(2, 3, kernel, padding=padding, dilation=dilation), (torch.randn(2, 2, 11, 12),))
    result = canonicalize(graph)
    conv = result.graph.node("conv2d")
    assert conv.target is torch.ops.aten.conv2d.default
    uneven = padding == "same" and any(dilation * (k - 1) % 2 for k in kernel)
    assert len(result.graph.calls) == (2 if uneven else 1)
    x = torch.randn(2, 2, 11, 12)
    assert torch.equal(walk(program(graph), (x,))[0], walk(program(result.graph), (x,))[0])


def test_a_limit_that_is_a_tensor_stays() -> None:
    graph = capture(Net(lambda x: torch.clamp(x, x.mean(), x.max())), (torch.randn(2, 1, 3, 3),))
    assert canonicalize(graph).graph is graph


@pytest.mark.parametrize("make", [lambda: nn.Conv1d(2, 4, 3, groups=2), lambda: nn.ConvTranspose2d(2, 4, 3, 2, groups=2)])
def test_a_convolution_of_any_kind_is_written_by_its_kind(make: Callable[[], nn.Module]) -> None:
    from exactq.graphs.graph import Edit, arguments

    model = make()
    x = torch.randn(2, 2, *[9] * (model.weight.ndim - 2))  # type: ignore[union-attr,operator]
    graph = capture(model, (x,))
    edit = Edit(graph)
    (node,) = (n for n in edit if n.op == "call_function")
    args = arguments(node)
    with edit.graph.inserting_before(node):
        whole = edit.call(
            "any",
            torch.ops.aten.convolution.default,
            *(args[k] for k in ("input", "weight", "bias", "stride", "padding", "dilation")),
            isinstance(model, nn.ConvTranspose2d),
            args.get("output_padding", [0]),
            args["groups"],
        )
    edit.replace(node, whole)
    back = canonicalize(edit.freeze()).graph
    assert back.calls[0].target is graph.calls[0].target
    assert torch.equal(walk(program(back), (x,))[0], walk(program(graph), (x,))[0])
