"""Which weights each engine's plan makes pair-safe, and that nothing saturates then."""

from __future__ import annotations

import pytest
import torch
from tests.targets.networks import Net
from torch import nn

import exactq
from exactq.kernels import fbgemm, onednn
from exactq.kernels.pairs import convolution_excess
from exactq.numerics.formats import INT8
from exactq.plans.plan import Own
from exactq.quantization.weights import weight_grid

SHAPES = {
    "dense": (16, 3, 3, 3),
    "depthwise": (16, 1, 3, 3),
    "doubled": (32, 1, 5, 5),
    "odd": (8, 5, 1, 1),
    "row": (8, 3, 4),
    "cube": (8, 3, 3, 3, 3),
}


def weight(name: str) -> torch.Tensor:
    return torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(1)).sign() * 0.5


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("observer", ["pairsafe-depthwise", "pairsafe-taps"])
def test_no_input_saturates_the_pairs_of_pair_safe_weights(name: str, observer: str) -> None:
    value, within_taps = weight(name), observer == "pairsafe-taps"
    groups = SHAPES[name][0] if name == "depthwise" else 1
    rank = value.ndim - 2
    places = {"stride": (1,) * rank, "padding": (0,) * 2 * rank, "dilation": (1,) * rank, "groups": groups}

    def saturates(observer: str) -> bool:
        codes = weight_grid(value, INT8.narrow, 0, observer=observer, groups=groups).encode(value)
        return convolution_excess(codes, zero=0, within_taps=within_taps, **places) is not None  # type: ignore[arg-type]

    assert not saturates(observer)
    assert saturates("minmax") == (value.shape[1] > 1 or not within_taps)


@pytest.mark.parametrize("depth", [384, 385, 387, 513, 768, 769])
def test_linear_layers_in_two_halves_are_pair_safe_where_pairs_start_again(depth: int) -> None:
    value = torch.randn(4, depth, generator=torch.Generator().manual_seed(depth)).sign() * 0.5
    codes = weight_grid(value, INT8.narrow, 0, observer="pairsafe-taps").encode(value)
    assert onednn._matrix_excess(codes) is None
    assert onednn.paired(codes).shape[1] == depth + (384 < depth < 768 and (depth + 1) // 2 % 2)


def observers(target: str, channels: int) -> dict[str, str]:
    """The observer of each weight of a small network with a depthwise convolution of so many channels."""
    model = Net(
        lambda n, x: n.c(n.b(n.a(x))),
        a=nn.Conv2d(3, channels, 3),
        b=nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        c=nn.Conv2d(channels, 6, 1, groups=2),
    )
    plan = exactq.plan(model.eval(), (torch.randn(2, 3, 9, 9),), target=target)
    return {name[0]: slot.observer for name, slot in plan.slots.items() if isinstance(slot, Own) and name.endswith("weight")}


@pytest.mark.parametrize(
    ("target", "channels", "pairsafe"),
    [
        ("fbgemm@avx2", 8, {"a", "b", "c"}),
        ("fbgemm@avx512vnni", 8, {"b"}),  # FBGEMM's depthwise kernels are AVX2 code
        ("fbgemm@avx512vnni", 6, set()),
        ("x86@avx512vnni", 8, set()),
        ("x86@avx512vnni", 104, {"b"}),  # beyond 100 groups the engine x86 takes FBGEMM
        ("x86@avx2", 6, {"a", "b", "c"}),
        ("onednn@avx2", 8, {"a"}),  # depthwise kernels multiply in int32, and so does the reference kernel of groups of 3
        ("onednn@avx512vnni", 8, set()),
        ("qnnpack@avx2", 8, set()),
    ],
)
def test_plans_make_the_weights_pair_safe_that_can_saturate(target: str, channels: int, pairsafe: set[str]) -> None:
    found = observers(target, channels)
    assert {layer for layer, observer in found.items() if observer.startswith("pairsafe")} == pairsafe


def test_the_fast_depthwise_kernel_is_for_whole_eights_of_groups_and_images_of_the_same_size() -> None:
    places = {"stride": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1)}
    assert fbgemm.depthwise_fast((8, 1, 3, 3), **places, groups=8)  # type: ignore[arg-type]
    assert fbgemm.depthwise_fast((16, 1, 3, 3), **places, groups=8)  # type: ignore[arg-type]
    for shape, groups in (((8, 1, 3, 3), 4), ((12, 1, 3, 3), 12), ((24, 1, 3, 3), 8), ((8, 1, 5, 5), 8), ((8, 1, 9, 9), 8)):
        assert not fbgemm.depthwise_fast(shape, **places, groups=groups)  # type: ignore[arg-type]
