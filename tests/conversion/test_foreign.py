"""Models of torch.ao as ours: the same integers as the module itself, the same names in every form, and clear refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.ao.quantization as tq
from examples.pytorch_issues import Pointwise, on_engine
from tests.conversion.networks import converted, images, prepared
from torch import Tensor, nn
from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize

import exactq
from exactq.conversion import foreign
from exactq.errors import ExactqError, ModelError, UsageError
from exactq.graphs.qdq import CODES
from exactq.plans.plan import Fixed, FixedChannels
from exactq.traces import trace

SHORT = (("fx", "fbgemm"),)
CASES = [
    pytest.param(mode, engine, marks=() if (mode, engine) in SHORT else pytest.mark.slow)
    for mode in ("eager", "fx")
    for engine in ("fbgemm", "x86", "onednn", "qnnpack")
]


@pytest.mark.runtime
@pytest.mark.parametrize(("mode", "engine"), CASES)
def test_the_emulator_gives_every_integer_of_a_converted_module(mode: str, engine: str) -> None:
    model = converted(mode, engine, prepared(mode, engine, trained=mode == "eager"))
    with on_engine(engine):
        verdict = exactq.verify(model, [images(5, seed=9)])
    assert verdict.equal
    assert verdict.mismatches == 0
    names = {t.name for t in verdict.tensors}
    assert {"x", "stem", "layer.0.conv1", "layer.1.conv2", "depthwise", "swish", "avgpool", "fc"} <= names
    assert len(verdict.unverified) == (1 if mode == "eager" else 0)  # a function of eager mode has no module to look into


@pytest.mark.runtime
def test_a_changed_weight_code_of_the_module_is_found() -> None:
    model = converted("eager", "fbgemm", prepared("eager", "fbgemm", trained=False))
    with on_engine("fbgemm"):
        theirs = foreign(model, (images(2),))
        weight = model.fc.weight()
        codes = weight.int_repr().clone()
        codes[0] = -codes[0]
        scales, zeros = weight.q_per_channel_scales(), weight.q_per_channel_zero_points()
        model.fc.set_weight_bias(torch._make_per_channel_quantized_tensor(codes, scales, zeros, 0), model.fc.bias())
        from exactq.verification import verify

        verdict = verify(theirs.quantized, [(images(16),)], runtime=theirs.runtime)
    assert {t.name for t in verdict.tensors if t.mismatches} == {"fc"}


@pytest.mark.runtime
@pytest.mark.parametrize(
    ("mode", "engine"), [("eager", "fbgemm"), *(pytest.param("fx", e, marks=pytest.mark.slow) for e in ("fbgemm", "onednn"))]
)
def test_a_trained_model_is_deployed_on_the_grids_that_it_used(mode: str, engine: str) -> None:
    model = prepared(mode, engine, trained=True)
    inputs = (images(8, seed=5),)
    with on_engine(engine):
        theirs = foreign(model, inputs)
        reals, quantized = theirs.runtime.trace(inputs), theirs.quantized
        codes = quantized.target.open(quantized.artifact()).trace(inputs)
        other = foreign(converted(mode, engine, model), inputs).runtime.trace(inputs)
    grids = quantized.grids
    compared = [name for name in reals if name + CODES in codes]
    assert len(compared) >= 10
    steps = {n: ((grids[n].decode(codes[n + CODES]) - reals[n]) / grids[n].scale).abs().round() for n in compared}
    # Sums of float32 and integers part only where they meet a tie; a jump of the grids moves a share of everything.
    assert sum(int((s > 0).sum()) for s in steps.values()) < 0.005 * sum(s.numel() for s in steps.values())
    assert max(float(s.max()) for n, s in steps.items() if n not in ("dropout", "fc")) <= 1
    jumped = (grids["stem"].decode(other["stem/codes"]) != reals["stem"]).float().mean()
    assert float(jumped) > 0.05
    assert any(jump.name == "stem.weight" for jump in theirs.jumps)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "fx"])
def test_both_forms_of_a_model_have_the_same_names(mode: str) -> None:
    model = prepared(mode, "qnnpack", trained=True)
    with on_engine("qnnpack"):
        before, after = (foreign(m, (images(2),)).quantized for m in (model, converted(mode, "qnnpack", model)))
    # FX trains a dropout's result on a grid of its own, and convert_fx drops it.
    assert set(before.grids) - {"dropout"} == set(after.grids)
    assert {"layer.0.conv1.weight", "layer.0.conv1", "stem", "fc.weight", "x"} <= set(before.grids)


def test_the_model_stays_as_it_was() -> None:
    model = prepared("eager", "fbgemm", trained=True)
    model.apply(tq.enable_observer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with on_engine("fbgemm"):
        theirs = foreign(model, (images(2),))
        first, second = (theirs.runtime.run((images(3, seed=n) * 5,)) for n in (1, 1))
        theirs.runtime.trace((images(2),))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(first[0], second[0])
    assert not any(m._forward_hooks for m in theirs.quantized.graph.module.modules())


def test_a_plan_of_given_grids_comes_back_from_its_folder(tmp_path) -> None:
    model = prepared("eager", "fbgemm", trained=True)
    with on_engine("fbgemm"):
        made = exactq.convert(model, (images(2),))
    again = exactq.load(made.save(tmp_path / "folder"))
    assert again.plan == made.plan
    assert isinstance(again.plan.slots["fc.weight"], FixedChannels)
    assert isinstance(again.plan.slots["fc"], Fixed)
    assert "given by the fake quantization" in again.plan.slots["fc"].reason
    x = (images(4, seed=2),)
    ours, theirs = (trace(q.program(), x) for q in (again, made))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def _one(fake: Callable[[], nn.Module] | None = None, **changes: object) -> nn.Module:
    model = Pointwise(bias=True, relu=False).train()
    default = tq.get_default_qat_qconfig("fbgemm", 0)
    model.qconfig = tq.QConfig(fake or default.activation, default.weight)
    return tq.prepare_qat(model)


def test_learned_step_sizes_are_the_grid() -> None:
    learned = (
        _LearnableFakeQuantize.with_args(
            observer=tq.MovingAverageMinMaxObserver, quant_min=0, quant_max=255, scale=0.1, zero_point=3.0, dtype=torch.quint8
        )
        if hasattr(_LearnableFakeQuantize, "with_args")
        else lambda: _LearnableFakeQuantize(tq.MovingAverageMinMaxObserver, 0, 255, 0.1, 3.0, dtype=torch.quint8)
    )
    model = _one(learned)
    model(torch.rand(2, 3, 4, 4))
    model.apply(lambda m: m.enable_param_learning() if isinstance(m, _LearnableFakeQuantize) else None)
    with torch.no_grad():
        model.conv.activation_post_process.scale.fill_(0.02)
        model.conv.activation_post_process.zero_point.fill_(100.4)
    with on_engine("fbgemm"):
        made = exactq.convert(model.eval(), (torch.rand(2, 3, 4, 4),))
    assert (made.plan.slots["conv"].scale, made.plan.slots["conv"].zero) == (pytest.approx(0.02), 100)


def test_activations_of_seven_bits_are_clamped_where_training_clamped_them() -> None:
    model = prepared("eager", "fbgemm", trained=True, version=0)
    x = (images(4, seed=7) * 4,)  # beyond what was seen, so that codes reach the end
    with on_engine("fbgemm"):
        theirs = foreign(model, x)
        codes = theirs.quantized.target.open(theirs.quantized.artifact()).trace(x)
        reals = theirs.runtime.trace(x)
    assert int(codes["stem/codes"].max()) == 127
    assert int(codes["stem.relu/codes"].max()) > 127
    assert torch.equal(theirs.quantized.grids["stem"].decode(codes["stem/codes"]), reals["stem"])


def _refused(model: nn.Module, inputs: Tensor | None = None, target: str = "fbgemm") -> str:
    with on_engine("fbgemm"), pytest.raises(ExactqError) as caught:
        exactq.convert(model, (images(2) if inputs is None else inputs,), target=target)
    assert isinstance(caught.value, ModelError | UsageError)
    return str(caught.value)


def test_a_prepared_model_that_was_never_calibrated_is_refused_by_name() -> None:
    for version in (0, 1):
        model = Pointwise(bias=True, relu=False).train()
        model.qconfig = tq.get_default_qat_qconfig("fbgemm", version)
        said = _refused(tq.prepare_qat(model).eval(), torch.rand(2, 3, 4, 4))
        assert "was prepared but never calibrated" in said
        assert "`quant`" in said
    model = Pointwise(bias=True, relu=False).eval()
    model.qconfig = tq.get_default_qconfig("fbgemm")
    assert "never calibrated" in _refused(tq.prepare(model), torch.rand(2, 3, 4, 4))


def test_fake_quantization_that_is_switched_off_is_refused() -> None:
    model = prepared("eager", "fbgemm", trained=True)
    model.apply(tq.disable_fake_quant)
    assert "is switched off, so the model's outputs are those of float values" in _refused(model)


def test_a_model_without_anything_quantized_is_refused() -> None:
    assert "nothing in this Conv2d is quantized or prepared" in _refused(nn.Conv2d(3, 3, 1))


def test_training_mode_is_refused() -> None:
    assert "training mode" in _refused(prepared("eager", "fbgemm", trained=True).train())


def test_modules_that_are_not_read_are_named_with_their_place() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.GRUCell(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    with on_engine("fbgemm"):
        dynamic = tq.quantize_dynamic(Net(), {nn.GRUCell})
    said = _refused(dynamic, torch.rand(2, 4))
    assert said.startswith("`body.0` is a torch.ao.nn.quantized.dynamic.modules.rnn.GRUCell, which is not read")


def test_a_prepared_model_is_not_verified_but_converted() -> None:
    model = prepared("eager", "fbgemm", trained=True)
    with on_engine("fbgemm"), pytest.raises(UsageError, match=r"prepared and has no integers yet: exactq\.convert"):
        exactq.verify(model, [images(2)])


def test_an_affine_weight_needs_an_engine_that_takes_it() -> None:
    model = Pointwise(bias=True, relu=False)
    with torch.no_grad():
        model.conv.weight.abs_()
    model.qconfig = tq.get_default_qat_qconfig("fbgemm", 1)
    ready = tq.prepare_qat(model.train())
    ready(torch.rand(2, 3, 4, 4))
    ready.eval().apply(tq.disable_observer)
    for target in ("onednn", "onnxruntime"):
        said = _refused(copy.deepcopy(ready), torch.rand(2, 3, 4, 4), target)
        assert (
            f"`conv.weight` is on a grid whose zero is -128, and the kernels of {target} take weights whose zero is 0" in said
        )
