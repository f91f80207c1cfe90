"""How is my bias quantized: scale, code, cost and headroom of each channel, and layers whose weights are all zero."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from tests import nets
from tests.targets.networks import EXAMPLES, WHOLE, quantized

import exactq
from exactq.errors import UsageError
from exactq.explanation import explain, explain_biases
from exactq.explanation.biases import INT32
from exactq.kernels import mlas
from exactq.traces import trace

from .models import all_zero, by_hand


def test_a_bias_has_the_code_and_the_cost_of_its_grid() -> None:
    (layer,) = explain_biases(by_hand()).layers
    (channel,) = layer.channels
    sx, sw, sy = np.float32(1 / 255), np.float32(2 / 127), layer.lsb
    assert (layer.node, layer.made, layer.held) == ("0", "1", "int32")
    assert channel.scale == float(sx * sw)
    assert channel.code == round(Fraction(float(np.float32(0.3))) / Fraction(float(sx * sw))) == 4858
    error = channel.code * Fraction(float(sx * sw)) - Fraction(float(np.float32(0.3)))
    assert channel.error == pytest.approx(float(error), rel=1e-9)
    assert channel.error_lsb == pytest.approx(float(error) / sy, rel=1e-9)
    assert channel.reach == (64 + 32 + 16 + 127) * (255 - 64) + 4858
    assert channel.share == channel.reach / INT32 < 1
    assert channel.headroom == pytest.approx(31 - np.log2(channel.reach))


def test_a_convolution_of_zeros_keeps_its_bias() -> None:
    """All-zero weights and bias 0.5: the scale is that of a weight range of ±1 over 127 rounded up to 2^-7, never 0."""
    made, x = all_zero()
    layer = explain_biases(made, "1").layers[0]
    assert layer.zero_weights == (0, 1)
    assert float(made.grids["1.weight"].scale.flatten()[0]) == 2.0**-7
    for channel in layer.channels:
        assert channel.scale == float(made.grids["0"].scale * np.float32(2.0**-7))
        assert channel.code == round(0.5 / channel.scale) == channel.reach
        assert abs(channel.error or 1) <= channel.scale / 2
    found = explain(made, "1", (0, 1, 0, 0), (x,))
    assert (found.code, found.real, found.reference) == (255, 0.5, 0.5)
    told = str(explain_biases(made))
    assert "all weight codes of 2 channels (0, 1) are zero: no input changes" in told


def test_a_bias_far_beyond_its_products_leaves_them_half_of_int32() -> None:
    layer = explain_biases(nets.quantized("a huge bias"), "b").layers[0]
    assert all(abs(c.code or 0) <= 2**30 < c.reach + 1 for c in layer.channels)
    assert all(c.share < 1 for c in layer.channels)


@pytest.mark.parametrize("isa", mlas.ISAS)
def test_no_accumulator_is_beyond_its_reach(isa: str) -> None:
    for number in (0, 2):
        made = quantized(EXAMPLES["aten.conv2d"][number])
        layers = {layer.made: layer for layer in explain_biases(made, isa=isa).layers}
        shape = made.float_graph.inputs[0].shape[1:]
        for value in (-50.0, 50.0):
            for channel in (0, 5):
                found = explain(made, "b", (0, channel, 0, 0), (torch.full((1, *shape), value),), isa=isa)
                acc = next(line for line in found.steps if line.name == "accumulator")
                assert abs(acc.values["exact"]) <= layers["b"].channels[channel].reach
    assert trace(made.program(isa), (torch.zeros(1, *shape),))  # the walk itself is not touched by explaining


def test_a_layer_without_bias_has_none_and_still_a_reach() -> None:
    layer = explain_biases(nets.quantized("without biases"), "c").layers[0]
    assert layer.held is None
    assert all((c.bias, c.code, c.error) == (None, None, None) and c.reach > 0 for c in layer.channels)
    assert "none" in str(explain_biases(nets.quantized("without biases")))


@pytest.mark.parametrize("target", ["fbgemm", "onednn"])
def test_an_engine_that_keeps_biases_in_float_is_told_what_int32_would_cost(target: str) -> None:
    """The codes are those that QNNPACK uses on the same grids, and no accumulator holds them."""
    made, used = (quantized(WHOLE[4], target=name) for name in (target, "qnnpack"))
    layers, theirs = explain_biases(made).layers, {layer.node: layer for layer in explain_biases(used).layers}
    for layer in layers:
        assert (layer.held, theirs[layer.node].held) == ("float32", "int32")
        for channel, other in zip(layer.channels, theirs[layer.node].channels, strict=True):
            assert channel.needed == channel.bias / channel.scale  # type: ignore[operator]
            assert channel.code == round(Fraction(channel.bias) / Fraction(channel.scale))  # type: ignore[arg-type]
            assert abs(channel.error or 1) <= (channel.scale or 0) * (1 + 2**-20) / 2
            assert channel.bias == other.bias
            assert other.reach > abs(other.code or 0)
    told = str(explain_biases(made))
    assert " ".join(told.split()).startswith(f"{target}@{made.plan.isa} keeps biases in float32 and rounds none: ")
    assert "int32 would have" in str(explain_biases(made, layers[0].node))
    found = explain(made, layers[0].made, (0, 0, 0, 0))
    line = next(line for line in found.steps if line.name == "bias")
    assert (line.values["held"], line.values["code"]) == ("float32", layers[0].channels[0].code)
    assert line.values["error"] == pytest.approx(layers[0].channels[0].error, rel=1e-6, abs=1e-12)


def test_a_bias_beyond_int32_is_said_to_have_no_code() -> None:
    torch.manual_seed(0)
    far = torch.nn.Conv2d(3, 4, 1)
    with torch.no_grad():
        far.weight.mul_(1e-6)
        far.bias[1] = 3e6
    x = torch.randn(2, 3, 4, 4)
    made = exactq.quantize(far.eval(), (x,), calibration=[x], target="fbgemm")
    channel = exactq.explain_biases(made).layers[0].channels[1]
    assert channel.code == INT32 - 1 < (channel.needed or 0)
    assert "needs a code beyond int32" in str(exactq.explain_biases(made))


def test_a_layer_that_stays_float_is_listed_with_its_reason() -> None:
    made = nets.quantized("transposed")
    found = explain_biases(made)
    assert found.floats == {"a": made.plan.slots["a"].reason}
    assert "a stays float, its bias too" in str(found)
    with pytest.raises(UsageError, match="`a` stays float, its bias too: "):
        explain_biases(made, "a")


def test_the_json_is_whole_and_the_text_fits_its_columns() -> None:
    for example in WHOLE[4:5]:
        found = explain_biases(quantized(example))
        facts = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert [layer["node"] for layer in facts["layers"]] == [layer.node for layer in found.layers]
        for layer in found.layers:
            assert all(len(line) <= 80 for line in str(explain_biases(quantized(example), layer.node)).splitlines())
            assert abs(layer.worst.error or 0) == max(abs(c.error or 0) for c in layer.channels)
        assert all(len(line) <= 80 for line in str(found).splitlines())


def test_a_name_that_is_no_layer_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown layer with a bias 'fcc': did you mean 'fc'"):
        explain_biases(nets.quantized("classifier"), "fcc")
