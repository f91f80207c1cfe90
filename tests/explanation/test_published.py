"""The well-known case, as torch.ao quantizes it: a convolution whose weights are all zero and whose bias is 0.5.

Why 255 and scale 0.00196 come out: the output is 0.5 everywhere, so its range is 0..0.5 and its scale 0.5/255. The scale of the
zero weights is the observer's least, 2^-23. An int32 bias needs a code of 0.5/(sx·2^-23) then, which is beyond int32 for inputs
below ±0.25; QNNPACK alone has int32 biases, and answers two different wrong codes there.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exactq
from exactq.errors import UsageError
from exactq.explanation import explain, explain_biases
from exactq.explanation.products import product_lines
from exactq.kernels import qnnpack
from exactq.kernels.anatomy import Products
from exactq.numerics.formats import INT8, UINT8, Grid
from exactq.plans.plan import Fixed
from exactq.quantized import Quantized

ENGINES = ("fbgemm", "x86", "onednn", "qnnpack")
X = torch.linspace(-1, 1, 108).reshape(1, 3, 6, 6)
LEAST = 2.0**-23
"""The smallest scale of torch.ao's observers, float32's epsilon."""


def zeros(kernel: int) -> nn.Conv2d:
    made = nn.Conv2d(3, 2, kernel)
    nn.init.zeros_(made.weight)
    nn.init.constant_(made.bias, 0.5)  # type: ignore[arg-type]
    return made.eval()


def published(engine: str, x: Tensor, kernel: int) -> tuple[Any, Tensor]:
    """What torch.ao makes of the convolution for that input, and the quantized tensor that the engine answers."""
    from torch.ao.quantization import MinMaxObserver, QConfig, QuantWrapper, convert, prepare

    before = torch.backends.quantized.engine
    with warnings.catch_warnings():  # torch.ao.quantization and quantized tensors are deprecated
        warnings.simplefilter("ignore")
        torch.backends.quantized.engine = engine
        try:
            model: Any = QuantWrapper(zeros(kernel)).eval()
            weights = MinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric)
            model.qconfig = QConfig(MinMaxObserver.with_args(dtype=torch.quint8), weights)
            ready = prepare(model)
            ready(x)
            made = convert(ready)
            return made, made.module(made.quant(x))
        finally:
            torch.backends.quantized.engine = before


def on_their_grids(target: str, made: Any, answer: Tensor, x: Tensor, kernel: int) -> Quantized:
    """The same convolution in exactq, on torch.ao's grids."""
    model = zeros(kernel)
    plan = exactq.plan(model, (x,), target=target)
    slots = dict(plan.slots) | {
        "input": Fixed(UINT8, float(made.quant.scale), int(made.quant.zero_point), "torch.ao's"),
        "weight": Fixed(INT8, made.module.weight().q_scale(), 0, "torch.ao's"),
        "conv2d": Fixed(UINT8, answer.q_scale(), answer.q_zero_point(), "torch.ao's"),
    }
    return exactq.quantize(model, (x,), calibration=[x], plan=replace(plan, slots=slots))


@pytest.mark.runtime
@pytest.mark.parametrize("engine", ENGINES)
def test_255_and_a_255th_of_the_bias_come_out_and_are_explained(engine: str) -> None:
    made, answer = published(engine, X, 3)
    assert answer.int_repr().unique().tolist() == [255]
    assert (answer.q_scale(), answer.q_zero_point()) == (float(torch.tensor(0.5) / 255), 0)
    assert made.module.weight().q_scale() == LEAST
    quantized = on_their_grids(engine, made, answer, X, 3)
    found = explain(quantized, "conv2d", (0, 1, 0, 0), (X,))
    assert (found.code, found.real, found.reference) == (255, 0.5, 0.5)
    steps = {line.name: line for line in found.steps}
    assert steps["products"].value == 0
    assert steps["bias"].values["held"] == ("int32" if engine == "qnnpack" else "float32")
    (layer,) = explain_biases(quantized).layers
    assert layer.zero_weights == (0, 1)
    assert layer.channels[0].code == 534773728  # 0.5 / (2/255 · 2^-23): within int32, by two bits
    assert layer.channels[0].reach == (534773728 if engine == "qnnpack" else 0)


@pytest.mark.runtime
@pytest.mark.parametrize(("kernel", "code", "seen"), [(3, -(2**31), 0), (1, 2**31 - 1, 10)])
def test_qnnpacks_int32_bias_saturates_or_wraps_and_the_others_do_not(kernel: int, code: int, seen: int) -> None:
    x = X / 100
    for engine in ("fbgemm", "x86", "onednn"):
        assert published(engine, x, kernel)[1].int_repr().unique().tolist() == [255]
    made, answer = published("qnnpack", x, kernel)
    assert answer.int_repr().unique().tolist() == [seen]
    with pytest.raises(UsageError, match="the int32 code of `bias` can overflow; the least is"):
        on_their_grids("qnnpack", made, answer, x, kernel)  # a plan on which a bias has no code is refused
    grids = {
        "x": flat(UINT8, float(made.quant.scale), int(made.quant.zero_point)),
        "w": flat(INT8, LEAST, 0),
        "y": flat(UINT8, answer.q_scale(), 0),
    }
    weight, bias = torch.zeros(2, 3, kernel, kernel, dtype=torch.int8), torch.full((2,), 0.5)
    codes = made.quant(x).int_repr()
    assert qnnpack.conv(weight, bias, **grids)(codes).unique().tolist() == [seen]
    anatomy = qnnpack.ANATOMIES["conv"](weight, bias, **grids)
    assert isinstance(anatomy, Products)
    lines = {line.name: line for line in product_lines(anatomy, (0, 0, 0, 0), (codes,), 0.5, answer.q_scale(), 3)}
    assert (lines["bias"].value, lines["accumulator"].value, lines["clamp"].value) == (code, code, seen)
    assert lines["bias"].text.endswith("it needs a code beyond int32, and the engine makes this of it")


@pytest.mark.runtime
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_only_products_of_matrices_saturate_a_bias_in_qnnpack(rank: int) -> None:
    """Which of its kernels runs decides; groups, channels and dilation do not."""
    from exactq.targets.pytorch.runtime import engine

    ops: Any = torch.ops.quantized
    grids = {"x": flat(UINT8, 1.0, 0), "w": flat(INT8, 1.0, 0), "y": flat(UINT8, 2.0**24, 128)}
    for kernel, stride, padding, groups in [(1, 1, 0, 1), (1, 1, 0, 4), (1, 2, 0, 1), (1, 1, 1, 4), (2, 1, 0, 1), (3, 1, 1, 4)]:
        weight, bias = torch.zeros(8, 4 // groups, *[kernel] * rank, dtype=torch.int8), torch.full((8,), 2.0**31)
        codes = torch.full((1, 4, *[5] * rank), 200, dtype=torch.uint8)
        places = {"stride": (stride,), "padding": (padding,), "groups": groups}
        with engine("qnnpack"):
            w = torch._make_per_tensor_quantized_tensor(weight, 1.0, 0)
            axes = ([stride] * rank, [padding] * rank, [1] * rank, groups)
            packed = getattr(ops, f"conv{rank}d_prepack")(w, bias, *axes)
            x = torch._make_per_tensor_quantized_tensor(codes, 1.0, 0)
            answer = getattr(ops, f"conv{rank}d")(x, packed, 2.0**24, 128).int_repr()
        assert torch.equal(qnnpack.conv(weight, bias, **grids, **places)(codes).to(torch.uint8), answer), (kernel, places)


def flat(fmt: Any, scale: float, zero: int) -> Grid:
    return Grid(fmt, torch.tensor(scale), torch.tensor(zero, dtype=torch.int32))
