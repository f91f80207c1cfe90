"""w' = w·γ/σ, b' = (b − μ)·γ/σ + β, against float64 within a derived bound."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from math import prod

import pytest
import torch
from torch import Tensor, nn

from exactq.errors import ModelError
from exactq.graphs.programs import program
from exactq.optimization.batchnorm import fold_batchnorm
from exactq.sources.capture import capture
from exactq.traces import walk

CONVS: dict[str, Callable[..., nn.Module]] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
    "conv_transpose1d": nn.ConvTranspose1d,
    "conv_transpose2d": nn.ConvTranspose2d,
    "conv_transpose3d": nn.ConvTranspose3d,
}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def filled(norm: nn.Module) -> nn.Module:
    """A normalisation as training leaves it, a negative γ and a small variance among its channels."""
    norm.running_mean.normal_()  # type: ignore[operator,union-attr]
    norm.running_var.uniform_(0.01, 3)  # type: ignore[operator,union-attr]
    if norm.weight is not None:
        nn.init.normal_(norm.weight)  # type: ignore[arg-type]
        nn.init.normal_(norm.bias)  # type: ignore[arg-type]
    return norm


def layer(seed: int) -> tuple[nn.Sequential, Tensor]:
    """A random layer with its normalisation, and an input."""
    choose, _ = random.Random(seed), torch.manual_seed(seed)
    kind = [*CONVS, "linear"][seed % 7]
    affine, bias = choose.random() < 0.7, choose.random() < 0.5
    if kind == "linear":
        fan, out = choose.randint(1, 40), choose.randint(1, 9)
        return nn.Sequential(nn.Linear(fan, out, bias=bias), filled(nn.BatchNorm1d(out, affine=affine))), torch.randn(4, fan)
    rank = int(kind[-2])
    groups = choose.choice([1, 1, 2, 3])
    channels, out = groups * choose.randint(1, 3), groups * choose.randint(1, 3)
    options = {"stride": choose.randint(1, 2), "padding": choose.randint(0, 1), "groups": groups, "bias": bias}
    conv = CONVS[kind](channels, out, choose.randint(1, 3), **options)
    norm = NORMS[rank](out, affine=affine, eps=choose.choice([1e-5, 1e-3]))
    return nn.Sequential(conv, filled(norm)), torch.randn(2, channels, *[choose.randint(4, 6) for _ in range(rank)])


def bound(model: nn.Sequential, x: Tensor) -> Tensor:
    """How far float32 may be from float64, for the folded layer as for the two operators one after the other.

    A float32 sum of n products in any order is off by at most (n + 1)·u·Σ|w||x| with u = 2⁻²⁴ (Higham, 3.5, to first order).
    Folding rounds each weight once more; adding the bias, subtracting μ, scaling by γ/σ (a root, a quotient, a product) and
    adding β are each one rounding of a value of at most S = |γ/σ|·(Σ|w||x| + |b| + |μ|) + |β|: fewer than 12 together, and 3
    more cover the second order. So the error is below (n + 16)·u·S.
    """
    big = copy.deepcopy(model).double()
    conv, norm = big
    terms = prod(conv.weight.shape[1:])
    if isinstance(conv, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        terms = prod(conv.weight.shape) // conv.weight.shape[1] // conv.groups
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.abs_()
        channels = [-1, *[1] * (x.ndim - 2)]
        gamma = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight.abs()  # type: ignore[arg-type]
        beta = torch.zeros_like(gamma) if norm.bias is None else norm.bias.abs()  # type: ignore[union-attr]
        scale = gamma / (norm.running_var + norm.eps).sqrt()  # type: ignore[operator]
        size = (conv(x.double().abs()) + norm.running_mean.abs().reshape(channels)) * scale.reshape(channels)  # type: ignore[operator]
    return (terms + 16) * 2.0**-24 * (size + beta.reshape(channels))


@pytest.mark.parametrize("seed", range(28))
def test_the_folded_layer_is_the_same_function(seed: int) -> None:
    model, x = layer(seed)
    model.eval()
    graph = capture(model, (x,))
    result = fold_batchnorm(graph)
    assert [str(f.what) for f in result.found] == ["1 folded into 0"]
    assert result.renames == {"1": "0"}
    assert [result.graph.name(n) for n in result.graph.calls] == ["0"]
    assert sorted(result.graph.constants) == ["0.bias", "0.weight"]
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        for some in (graph, result.graph):
            (out,) = walk(program(some), (x,))
            assert bool(((out - exact).abs() <= bound(model, x)).all())


def test_weights_are_rounded_once_from_float64() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), filled(nn.BatchNorm2d(3))).eval()
    conv, norm = copy.deepcopy(model).double()
    folded = fold_batchnorm(capture(model, (torch.randn(2, 2, 4, 4),))).graph.constants
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()  # type: ignore[operator]
    assert torch.equal(folded["0.weight"], (conv.weight * scale.reshape(-1, 1, 1, 1)).float())
    assert torch.equal(folded["0.bias"], ((conv.bias - norm.running_mean) * scale + norm.bias).float())  # type: ignore[operator]


def test_the_graph_before_keeps_its_weights() -> None:
    model, x = layer(1)
    graph = capture(model, (x,))
    before = {k: v.clone() for k, v in graph.constants.items()}
    fold_batchnorm(graph)
    assert all(torch.equal(v, before[k]) for k, v in graph.constants.items())


class Shared(nn.Module):
    """One convolution, used twice, each time with its own normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn1, self.bn2 = filled(nn.BatchNorm2d(3)), filled(nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv(self.bn1(self.conv(x))))


def test_a_shared_weight_is_copied_under_a_new_name() -> None:
    torch.manual_seed(0)
    model, x = Shared().eval(), torch.randn(2, 3, 4, 4)
    result = fold_batchnorm(capture(model, (x,)))
    assert [f.what for f in result.found] == ["bn1 folded into conv", "bn2 folded into conv_1"]
    assert sorted(result.graph.constants) == ["conv.bias", "conv.bias_1", "conv.weight", "conv.weight_1"]
    with torch.no_grad():
        torch.testing.assert_close(walk(program(result.graph), (x,))[0], model(x), rtol=1e-4, atol=1e-5)


class Kept(nn.Module):
    def __init__(self, forward: Callable[..., object], **modules: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> object:
        return self.run(self, x)


KEPT = {
    "bn stays: it reads relu (aten.relu), no convolution or linear layer": Kept(
        lambda s, x: s.bn(torch.relu(x)), bn=nn.BatchNorm2d(3)
    ),
    "bn stays: it reads x (an input), no convolution or linear layer, and conv behind it pads with zeros, "
    "which a shifted input would not have": Kept(
        lambda s, x: s.conv(s.bn(x)), bn=nn.BatchNorm2d(3), conv=nn.Conv2d(3, 2, 3, padding=1)
    ),
    "bn stays: conv is read by relu too": Kept(
        lambda s, x: torch.relu(c := s.conv(x)) + s.bn(c), bn=nn.BatchNorm2d(2), conv=nn.Conv2d(3, 2, 1)
    ),
    "bn stays: conv is read by the output too": Kept(
        lambda s, x: (c := s.conv(x), s.bn(c)), bn=nn.BatchNorm2d(2), conv=nn.Conv2d(3, 2, 1)
    ),
    "bn stays: it normalises by the statistics of each batch": Kept(
        lambda s, x: s.bn(s.conv(x)), bn=nn.BatchNorm2d(2, track_running_stats=False), conv=nn.Conv2d(3, 2, 1)
    ),
    "bn stays: its channels are not those of linear, whose result has 4 dimensions": Kept(
        lambda s, x: s.bn(s.linear(x)), bn=nn.BatchNorm2d(3), linear=nn.Linear(4, 4)
    ),
    "bn stays: its parameters or those of the layer before are computed, not constant": Kept(
        lambda s, x: s.bn(nn.functional.conv2d(x, s.conv.weight * x.mean())), bn=nn.BatchNorm2d(2), conv=nn.Conv2d(3, 2, 1)
    ),
}


@pytest.mark.parametrize("reason", KEPT)
def test_what_cannot_be_folded_stays_and_says_why(reason: str) -> None:
    graph = capture(KEPT[reason], (torch.randn(2, 3, 4, 4),))
    result = fold_batchnorm(graph)
    assert [k.what for k in result.kept] == [reason]
    assert result.graph is graph
    assert not result.found


@pytest.mark.parametrize(
    ("var", "gamma", "eps", "message"),
    [
        (0.0, 1.0, 0.0, "`1` cannot be folded: channel 2 with variance 0 and eps 0 gives a weight or bias that is not finite"),
        (-1.0, 1.0, 1e-5, "channel 2 with variance -1 and eps 1e-05"),
        (1e-30, 1e38, 1e-30, "channel 2 with variance 1e-30 and eps 1e-30"),
    ],
)
def test_a_fold_that_is_not_finite_is_an_error_of_the_model(var: float, gamma: float, eps: float, message: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=eps)).eval()
    model[1].running_var[2] = var  # type: ignore[index]
    with torch.no_grad():
        model[1].weight[2] = gamma  # type: ignore[index]
    with pytest.raises(ModelError) as error:
        fold_batchnorm(capture(model, (torch.randn(2, 3, 4, 4),)))
    assert message in str(error.value)


def test_zero_variance_with_an_epsilon_folds() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    model[1].running_var.zero_()  # type: ignore[operator,union-attr]
    assert len(fold_batchnorm(capture(model, (torch.randn(2, 3, 4, 4),))).found) == 1
