"""Layers that lay a grid over their input when they see it: the engine's own reals, bit for bit, and what each verb says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.nets import edited, net
from torch import Tensor, nn

import exactq
from exactq.errors import UsageError
from exactq.explanation import explain_biases
from exactq.flow import plan_graph, prepare, quantize_graph
from exactq.graphs.graph import Edit
from exactq.graphs.programs import program
from exactq.numerics.formats import UINT8
from exactq.plans.plan import Dynamic, Edge, Own
from exactq.quantized import Quantized, load
from exactq.traces import trace, walk

ENGINES = ("fbgemm", "x86", "onednn", "qnnpack")


def model() -> nn.Module:
    """Two linear layers with a relu between, of rows of vectors; a float island; a third one, and a sum beside it."""
    torch.manual_seed(0)
    parts = {"a": nn.Linear(24, 32), "b": nn.Linear(32, 24, bias=False), "c": nn.Linear(24, 24)}
    return net(lambda self, x: self.c(F.gelu(self.b(F.relu(self.a(x))))) + self.b(F.relu(self.a(x))), **parts)


def rows(seed: int, scale: float = 1.0) -> tuple[Tensor]:
    return (torch.randn(7, 3, 24, generator=torch.Generator().manual_seed(seed)) * scale,)


def made(engine: str, recipe: str = "dynamic") -> Quantized:
    return quantize_graph(prepare(model(), rows(0)), calibration=[rows(0)], target=engine, recipe=recipe)


BATCHES: Sequence[tuple[Tensor]] = (rows(1), rows(2, 1e4), rows(3, 1e-9), (rows(4)[0].abs(),), (torch.zeros(7, 3, 24),))


@pytest.mark.runtime
@pytest.mark.parametrize("engine", ENGINES)
def test_every_dynamic_layer_gives_the_reals_that_are_predicted(engine: str, tmp_path: Path) -> None:
    quantized = load(made(engine).save(tmp_path / "q"))
    verdict = exactq.verify(quantized, BATCHES, inputs=1000)
    assert verdict.mismatches == 0
    counts = {t.name: t.elements for t in verdict.tensors}
    layers = [step for step in quantized.program().steps if step.covers]
    assert {step.name for step in layers} <= set(counts)
    assert len(layers) == 5
    assert {step.kernel.partition(".")[2] for step in layers} == {"linear_dynamic"}
    assert [text.partition(":")[0] for text in verdict.unverified] == ["gelu"]
    assert [t.elements for t in verdict.outputs] == [5 * 7 * 3 * 24]
    assert verdict.operators["quantized::linear_relu_dynamic"] == 2
    assert quantized.coverage() == 1.0


@pytest.mark.runtime
def test_a_changed_weight_code_is_found() -> None:
    quantized = made("fbgemm")
    edit = Edit(quantized.graph)
    weight = next(n for n in edit if edit.value(n) == "c.weight")
    edit.set_constant(weight, -edit.tensor(weight))
    other = quantized.target.open(replace(quantized, graph=edit.freeze()).artifact())
    from exactq.verification import verify

    verdict = verify(quantized, BATCHES, runtime=other)
    assert {t.name for t in verdict.tensors if t.mismatches} == {"c"}
    assert not verdict.equal


@pytest.mark.runtime
def test_a_trace_shows_the_reals_on_both_sides_of_a_layer_which_the_emulator_goes_on_from() -> None:
    quantized = made("fbgemm")
    shown = [step for step in quantized.program().steps if step.shown]
    seen = quantized.target.open(quantized.artifact()).trace(rows(1))
    assert {step.name for step in shown} == set(seen)
    assert all(step.grid is None and seen[step.name].dtype == torch.float32 for step in shown)
    assert {step.name for step in shown if step.inexact} == {"gelu"}
    # What a float kernel made otherwise by one bit is no difference of the layer behind it.
    runtime = quantized.target.open(quantized.artifact())

    def nudged(inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        given = runtime.trace(inputs)
        gelu = torch.nextafter(given["gelu"], torch.tensor(9.0))
        layer = next(step for step in quantized.program().steps if step.name == "c")
        return {**given, "gelu": gelu, "c": layer.run(gelu)}

    from exactq.verification import verify

    verdict = verify(quantized, [rows(1)], runtime=replace(runtime, trace=nudged))
    assert not [t for t in verdict.tensors if t.mismatches]


def test_the_graph_is_one_of_standard_operators_and_close_to_the_kernels() -> None:
    quantized = made("fbgemm")
    names = {str(n.target) for n in quantized.graph.calls}
    assert {
        f"quantized_decomposed.{op}.tensor" for op in ("choose_qparams", "quantize_per_tensor", "dequantize_per_tensor")
    } < names
    with torch.no_grad():
        (reference,), (answer,) = walk(program(quantized.graph), rows(1)), walk(quantized.program(), rows(1))
    assert float((reference - answer).abs().max()) < 1e-5 * float(answer.abs().max())


@pytest.mark.runtime
@pytest.mark.parametrize("engine", ENGINES)
def test_a_plan_may_mix_static_and_dynamic_layers(engine: str) -> None:
    torch.manual_seed(0)
    layers = {"conv": nn.Conv2d(3, 8, 3), "fc": nn.Linear(8 * 36, 16), "last": nn.Linear(16, 5)}
    mixed = net(lambda self, x: self.last(F.relu(self.fc(torch.flatten(F.relu(self.conv(x)), 1)))), **layers)
    inputs = (torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)
    graph = prepare(mixed, inputs)
    static = plan_graph(graph, target=engine)
    fc = graph.node("fc")
    name = graph.name(fc.all_input_nodes[0])
    bias = {"fc.bias": plan_graph(graph, target=engine, recipe="dynamic").slots["fc.bias"]}
    own = Own(UINT8, "minmax", "asked for")
    plan = edited(static, {"fc": own, **bias}, {Edge(name, "fc"): Dynamic(UINT8, "asked for", reduce_range=True)})
    plan = replace(plan, edges={edge: slot for edge, slot in plan.edges.items() if edge.value != "fc.bias"})
    quantized = quantize_graph(graph, plan=plan, calibration=[inputs])
    kernels = {step.name: step.kernel for step in quantized.program().steps}
    assert kernels["fc"].endswith(".linear_dynamic")
    assert kernels["last/codes"].endswith(".linear")
    verdict = exactq.verify(quantized, [inputs])
    assert verdict.equal
    assert {"fc", "last"} <= {t.name for t in verdict.tensors}


@pytest.mark.runtime
def test_two_ways_to_run_dynamic_layers_are_compared_by_their_reals() -> None:
    quantized = made("fbgemm")
    assert exactq.diff((quantized, "emulator"), (quantized, "runtime"), [rows(1)]).equal
    found = exactq.diff((quantized, "float"), (quantized, "runtime"), [rows(1)])
    assert {"c", "gelu"} <= {t.name for t in found.tensors}
    assert {"different weight grid", "different activation grid"} <= {str(c.cause) for c in found.causes}
    assert "unknown" not in {str(c.cause) for c in found.causes}
    assert all(c.share <= 1 for c in found.causes)
    engines = exactq.diff(quantized, made("qnnpack"), [rows(1)])
    assert [str(c.cause) for c in engines.causes] == ["float summation order"]


def test_an_explanation_says_that_it_does_not_cover_such_a_layer() -> None:
    quantized = made("fbgemm")
    with pytest.raises(UsageError) as error:
        exactq.explain(quantized, "c", (0, 0, 0))
    assert str(error.value) == (
        "`c` is reals that fbgemm.linear_dynamic makes of `gelu`, on a grid that it lays over each batch: it ends in no "
        "integer, and explanations of dynamic layers are not covered; `exactq verify` compares its reals"
    )
    assert explain_biases(quantized).floats["c"].startswith("it encodes its input at run time")


def test_such_a_model_is_not_trained() -> None:
    with pytest.raises(UsageError, match="`a` lays a grid over its input at run time, through which no gradient is known"):
        exactq.train(made("fbgemm"), [rows(0), rows(1)], epochs=1)


def test_the_emulator_shows_what_the_runtime_shows() -> None:
    assert set(trace(made("qnnpack").program(), rows(1))) >= {"gelu", "c"}
