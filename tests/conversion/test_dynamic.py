"""Modules that quantize their input at run time: the emulator beside their own run, by the reals that they read and make."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.ao.quantization as tq
import torch.nn.functional as F
from examples.pytorch_issues import on_engine
from torch import Tensor, nn
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

import exactq
from exactq.errors import ModelError
from exactq.plans.plan import Dynamic

pytestmark = pytest.mark.filterwarnings(
    "ignore:Currently, qnnpack incorrectly ignores reduce_range:UserWarning",  # PyTorch's word on its own module
)


class Network(nn.Module):
    """A convolution that stays float, linear layers with a relu module, a function, or nothing behind; one called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.body = nn.Sequential(nn.Linear(4 * 36, 32), nn.ReLU(inplace=True), nn.Linear(32, 16, bias=False))
        self.twice, self.last = nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(torch.flatten(self.conv(x), 1))
        return self.last(self.twice(F.relu(self.twice(F.gelu(x)))))


def images(seed: int) -> Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def dynamic(mode: str, engine: str) -> nn.Module:
    torch.manual_seed(0)
    float_model, by_channel = Network().eval(), tq.per_channel_dynamic_qconfig
    with on_engine(engine):
        if mode == "fx":
            return convert_fx(prepare_fx(float_model, tq.QConfigMapping().set_global(by_channel), (images(0),)))
        return tq.quantize_dynamic(float_model, {nn.Linear: by_channel} if mode == "by channel" else {nn.Linear})


@pytest.mark.runtime
@pytest.mark.parametrize("engine", ["fbgemm", "x86", "onednn", "qnnpack"])
@pytest.mark.parametrize("mode", ["eager", "by channel", "fx"])
def test_the_emulator_gives_every_real_of_the_modules(mode: str, engine: str) -> None:
    model = dynamic(mode, engine)
    with on_engine(engine):
        verdict = exactq.verify(model, [(images(1),), (images(2) * 100,)])
    assert verdict.equal
    assert verdict.inputs == 12
    assert sorted(t.elements for t in verdict.tensors) == [12 * n for n in (5, 16, 16, 16, 32)]
    assert {"body.2", "last"} <= {t.name for t in verdict.tensors}
    assert len(verdict.outputs) == 1
    floats = [text.rpartition(": ")[2] for text in verdict.unverified]
    assert [text.split()[0] for text in floats] == ["`conv2d`", "`gelu`"]


@pytest.mark.runtime
def test_a_changed_weight_of_the_module_is_found() -> None:
    from exactq.conversion import foreign
    from exactq.verification import verify

    model = dynamic("eager", "fbgemm")
    with on_engine("fbgemm"):
        theirs = foreign(model, (images(0),))
        weight = model.last.weight()
        codes = -weight.int_repr().clamp(min=-127)
        model.last.set_weight_bias(torch._make_per_tensor_quantized_tensor(codes, weight.q_scale(), 0), model.last.bias())
        verdict = verify(theirs.quantized, [(images(1),)], runtime=theirs.runtime)
    assert {t.name for t in verdict.tensors if t.mismatches} == {"last"}


@pytest.mark.runtime
def test_a_converted_model_is_deployed_and_its_plan_says_what_it_does(tmp_path: Path) -> None:
    with on_engine("fbgemm"):
        made = exactq.convert(dynamic("fx", "fbgemm"), (images(0),))
    slots = list(made.plan.edges.values())
    assert len(slots) == 5
    assert all(isinstance(slot, Dynamic) and slot.reduce_range for slot in slots)
    back = exactq.load(made.save(tmp_path / "q"))
    assert back.plan == made.plan
    assert exactq.verify(back, [(images(1),)]).equal


def test_what_is_not_read_is_refused_by_its_place() -> None:
    torch.manual_seed(0)
    with on_engine("fbgemm"):
        half = tq.quantize_dynamic(Network().eval(), {nn.Linear}, dtype=torch.float16)
        with pytest.raises(ModelError, match=r"`body\.0` has weights of float16: only int8 weights are read"):
            exactq.convert(half, (images(0),))
        model = dynamic("eager", "fbgemm")
        with pytest.raises(ModelError, match="quantizes its input at run time, for which onnxruntime has no layer"):
            exactq.convert(model, (images(0),), target="onnxruntime")
        affine = copy.deepcopy(model)
        weight = affine.last.weight()
        affine.last.set_weight_bias(torch._make_per_tensor_quantized_tensor(weight.int_repr(), 0.1, 3), affine.last.bias())
        with pytest.raises(ModelError, match="`last` has weights on a grid whose zero is not 0"):
            exactq.convert(affine, (images(0),))
