"""PT2E graphs of torchao: the Q/DQ graph is theirs, integer by integer, and a trained one keeps the grids of its training."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, fx, nn

import exactq
from exactq.conversion import foreign
from exactq.errors import ModelError
from exactq.graphs.programs import program
from exactq.graphs.qdq import CODES
from exactq.traces import trace, walk

pytestmark = [pytest.mark.runtime, pytest.mark.slow]  # torchao alone takes seconds to import


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Without what torchao and torch say of themselves when they are imported and export."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Net(nn.Module):
    """A normalized convolution, one with a bias, a shortcut, a pool and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv1(x)))
        x = torch.relu(self.conv2(x)) + x
        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


def images(seed: int) -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def prepared(quantizer: str, *, trained: bool) -> fx.GraphModule:
    """The network prepared by a quantizer of torchao's, calibrated on three batches."""
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e, prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    from torchao.testing.pt2e import _xnnpack_quantizer as xnnpack

    torch.manual_seed(0)
    model = Net().train(trained)
    if quantizer == "xnnpack":
        chosen = xnnpack.XNNPACKQuantizer().set_global(
            xnnpack.get_symmetric_quantization_config(is_per_channel=True, is_qat=trained)
        )
    else:
        chosen = x86.X86InductorQuantizer().set_global(
            x86.get_default_x86_inductor_quantization_config(is_qat=trained, reduce_range=quantizer == "x86 in seven bits")
        )
    exported = torch.export.export(model, (images(0),), strict=True).module()
    made = (prepare_qat_pt2e if trained else prepare_pt2e)(exported, chosen)
    with torch.no_grad():
        for seed in range(3):
            made(images(seed))
    move_exported_model_to_eval(made)
    made.apply(lambda m: m.disable_observer() if hasattr(m, "disable_observer") else None)
    return made


def converted(model: fx.GraphModule) -> fx.GraphModule:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    return convert_pt2e(copy.deepcopy(model))


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("quantizer", ["x86", "x86 in seven bits", "xnnpack"])
def test_the_graph_is_theirs_integer_by_integer(quantizer: str, *, trained: bool) -> None:
    model, inputs = converted(prepared(quantizer, trained=trained)), (images(9) * 2,)
    theirs = foreign(model, inputs, target="x86")
    assert (theirs.kind, theirs.mode) == ("converted", "pt2e")
    own, ours = theirs.runtime.trace(inputs), trace(program(theirs.quantized.graph), inputs)
    assert len(own) >= 3
    assert all(torch.equal(ours[name], codes) for name, codes in own.items())
    assert torch.equal(walk(program(theirs.quantized.graph), inputs)[0], theirs.runtime.run(inputs)[0])


@pytest.mark.parametrize("quantizer", ["x86", "xnnpack"])
def test_a_trained_graph_keeps_the_grids_of_its_training(quantizer: str) -> None:
    model, inputs = prepared(quantizer, trained=True), (images(9),)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    theirs = foreign(model, inputs, target="x86")
    assert (theirs.kind, theirs.mode) == ("prepared", "pt2e")
    assert {"conv1.weight", "conv2.weight", "fc.weight"} <= {jump.name for jump in theirs.jumps}
    made = theirs.quantized
    assert set(made.grids) == set(foreign(converted(model), inputs, target="x86").quantized.grids)
    reals, codes = theirs.runtime.trace(inputs), made.target.open(made.artifact()).trace(inputs)
    steps = {
        name: ((made.grids[name].decode(codes[name + CODES]) - value) / made.grids[name].scale).abs().round()
        for name, value in reals.items()
        if name + CODES in codes
    }
    assert len(steps) >= 3
    assert sum(int((s > 0).sum()) for s in steps.values()) < 0.005 * sum(s.numel() for s in steps.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_target_of_a_graph_is_onnx_runtime_unless_another_is_named() -> None:
    made = exactq.convert(prepared("xnnpack", trained=True), (images(1),))
    assert made.plan.target == "onnxruntime"
    assert exactq.verify(made, [images(2)]).equal
    assert made.coverage() == 1.0


def test_a_graph_that_was_never_calibrated_is_refused() -> None:
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    chosen = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    model = prepare_pt2e(torch.export.export(Net().eval(), (images(0),), strict=True).module(), chosen)
    with pytest.raises(ModelError, match="was prepared but never calibrated"):
        exactq.convert(model, (images(0),))
