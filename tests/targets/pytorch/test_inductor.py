"""What torch.compile is given, what is predicted of it, and what the target says where it cannot compile.

EXACTQ_SEED=N draws other cases, EXACTQ_COMPILED=N as many of each operator; 300 take some five minutes an operator.
"""

from __future__ import annotations

import os

import pytest
import torch
from tests.kernels.compiled import answers, decided
from tests.kernels.engine_cases import case
from tests.targets.networks import WHOLE, Net, batch, quantized
from torch import nn
from torch._inductor import cpp_builder, exc

import exactq
from exactq.errors import TargetError
from exactq.graphs.programs import program
from exactq.graphs.qdq import CODES
from exactq.plans.plan import Fused
from exactq.targets import TARGETS
from exactq.targets.pytorch.calls import Adaptive, Average, calls, needed
from exactq.targets.pytorch.emit import fold
from exactq.targets.pytorch.inductor import module, rules, runtime
from exactq.targets.pytorch.inductor.rules import NAME, OPERATORS
from exactq.targets.pytorch.runtime import detect_isa
from exactq.traces import Step, trace, walk

RESNET = WHOLE[0]
SEED = int(os.environ.get("EXACTQ_SEED", "0"))
COUNT = int(os.environ.get("EXACTQ_COMPILED", "8"))
"""Cases of each operator, and how many are compiled together."""
TOGETHER = 25

LOOPS = ("add", "mul", "cat", "hardswish", "leaky_relu", "quantize", "dequantize")
POOLS = ("mean", *(f"{kind}_pool{rank}d" for kind in ("max", "avg", "adaptive_avg") for rank in (1, 2, 3)))[:-1]
LAYERS = ("conv1d", "conv2d", "linear")


@pytest.mark.parametrize("example", [WHOLE[0], WHOLE[3], WHOLE[4]], ids=lambda e: e.name)
def test_what_is_compiled_means_what_the_graph_means(example) -> None:  # type: ignore[no-untyped-def]
    made = quantized(example, target=NAME)
    graph, inputs = fold(made.graph), batch(example, 4, 5)
    asked = needed(calls(graph, NAME, OPERATORS), graph.outputs)
    kept = tuple(call.name for call in asked if call.grid is not None and call.name.endswith(CODES))
    found = dict(zip(kept, module.compilable(graph, asked, kept)(*inputs)[len(graph.outputs) :], strict=True))
    away: dict[str, int] = {}

    def see(step: Step, value: torch.Tensor) -> torch.Tensor | None:
        """Compare, and go on from the module's own codes: a pool divides integers where the graph sums reals."""
        if step.name in found:
            away[step.name] = int((found[step.name].int() - value.int()).abs().max())
        return found.get(step.name)

    walk(program(graph), inputs, see)
    assert set(away) == set(kept)
    pools = {call.name for call in asked if isinstance(call.what, Average | Adaptive)}
    assert {name: n for name, n in away.items() if n > (name in pools)} == {}


def test_codes_are_at_most_a_step_from_the_float_graph_of_the_same_codes() -> None:
    made, inputs = quantized(RESNET, target=NAME), batch(RESNET, 8, 5)
    ours, seen = trace(made.program(), inputs), {}
    walk(program(made.graph), inputs, lambda step, value: seen.__setitem__(step.name, value))
    for name in [n for n in ours if n.endswith(CODES)]:
        assert int((ours[name].int() - seen[name].int()).abs().max()) <= 2, name  # its own step, and one of what it reads


@pytest.mark.parametrize(("target", "kernel"), [(NAME, "onednn.qconv2d_pointwise"), ("onednn", "onednn.conv_add")])
def test_the_last_convolution_of_a_residual_block_adds_on_its_accumulator(target: str, kernel: str) -> None:
    made = quantized(RESNET, target=target)
    fused = [name for name, slot in made.plan.slots.items() if isinstance(slot, Fused) and slot.into.endswith("add")]
    assert fused == ["0.3.conv2", "0.4.conv2", "0.5.conv2"]
    steps = [step for step in made.program().steps if step.kernel == kernel]
    assert [step.covers[0] for step in steps] == fused
    assert [step.kernel for step in quantized(RESNET, target="fbgemm").program().steps].count("quantized.add") == 3


class Twice(nn.Module):
    """A sum whose operand is read again behind it: the kernel would have written over it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        return (self.b(torch.relu(x)) + y) * y


def test_a_sum_is_not_fused_where_its_operand_is_read_again_or_broadcast() -> None:
    x = torch.randn(2, 3, 6, 6)
    pixel = Net(lambda n, x: n.b(x) + n.pool(n.a(x)), a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1), pool=nn.AdaptiveAvgPool2d(1))
    own = Net(lambda n, x: n.b(x) + x, b=nn.Conv2d(3, 3, 1))
    for model in (Twice(), pixel, own):
        slots = exactq.plan(model.eval(), (x,), target=NAME).slots
        assert not [name for name, slot in slots.items() if isinstance(slot, Fused)], type(model)


def test_layers_of_one_input_are_said_to_be_multiplied_in_float() -> None:
    model = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1))
    made = exactq.quantize(model.eval(), (torch.randn(2, 1),), calibration=[torch.randn(16, 1)], target=NAME)
    assert {s.name: s.inexact for s in made.program().steps if s.inexact and s.grid is not None} == {
        "1/codes": "torch.compile multiplies single numbers in float"
    }


@pytest.mark.slow
@pytest.mark.runtime
def test_a_small_layer_multiplies_codes_for_one_sample_too() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1))
    made = exactq.quantize(model.eval(), (torch.randn(2, 6),), calibration=[torch.randn(16, 6)], target=NAME)
    verdict = exactq.verify(made, [torch.randn(1, 6)], inputs=1)
    assert (verdict.mismatches, verdict.unverified) == (0, ())
    assert verdict.operators["onednn.qlinear_pointwise"] == 2


def test_no_compiler_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(TargetError, match=r"finds no compiler: install g\+\+ or clang\+\+, or name one in the variable CXX"):
        TARGETS[NAME].open(quantized(RESNET, target=NAME).artifact())


def test_a_file_of_an_engine_is_refused_by_name_and_the_other_way_round() -> None:
    engine, compiled = quantized(RESNET, target="fbgemm").artifact(), quantized(RESNET, target=NAME).artifact()
    with pytest.raises(TargetError, match="was made for the engine fbgemm, not inductor: export the model for inductor"):
        TARGETS[NAME].open(engine)
    with pytest.raises(TargetError, match="the file was made for the engine inductor, not fbgemm"):
        TARGETS["fbgemm"].open(compiled)


def test_a_wrong_number_of_inputs_is_named() -> None:
    loaded = TARGETS[NAME].open(quantized(WHOLE[4], target=NAME).artifact())
    with pytest.raises(TargetError, match=r"the file takes 2 inputs \(.*\), not 1"):
        loaded.run(batch(WHOLE[4], 2, 1)[:1])


def test_what_a_module_calls_is_counted_in_its_code() -> None:
    code = """
import torch
# torch.ops.aten.conv2d
def call(self, args):
        cpp_fused_add_0(buf0, buf1)
        cpp_fused_1(buf2)
        buf4 = torch.ops.onednn.qconv_pointwise.tensor(buf0, x_scale)
        buf5 = torch.ops.onednn.qconv_pointwise.tensor(buf4, x_scale)
"""
    assert runtime.counted(code) == {"loop": 2, "onednn.qconv_pointwise": 2}


def test_convolutions_of_three_axes_and_sigmoid_have_no_rule() -> None:
    assert not {"aten.conv3d", "aten.sigmoid"} & set(rules.OPERATORS)


@pytest.mark.slow
@pytest.mark.runtime
@pytest.mark.parametrize("name", [*LOOPS, *POOLS, *LAYERS])
def test_compiled_operators_give_the_predicted_integers(name: str) -> None:
    isa, differ = detect_isa("onednn"), []
    for first in range(0, COUNT, TOGETHER):
        indices = range(first, min(first + TOGETHER, COUNT))
        some = {index: made for index in indices if decided(made := case(name, SEED, index), isa)}
        found, expected, operators = answers([*some.values()], isa)
        differ += [index for index, f, e in zip(some, found, expected, strict=True) if not torch.equal(f, e)]
        if name in LAYERS:
            assert sum(operators.get(f"onednn.{kernel}", 0) for kernel in ("qconv_pointwise", "qlinear_pointwise")) == len(some)
    assert not differ, f"of {COUNT} cases of seed {SEED} differ: {differ}"
