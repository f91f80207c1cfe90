"""What every target keeps: each rule cites a source, has a kernel, is written, and the runtime gives the predicted integers."""

from __future__ import annotations

import pytest
import torch

import exactq
from exactq.errors import UsageError
from exactq.graphs.graph import op_name
from exactq.plans.rules import Computes, Makes
from exactq.quantized import Quantized
from exactq.targets import TARGETS, Target, target_named

from .networks import EXAMPLES, WHOLE, Example, batch, quantized
from .onnxruntime.fusion import only_integers as of_onnxruntime
from .pytorch.fusion import only_integers as of_pytorch
from .pytorch.fusion import only_lowered as of_inductor

FUSED = {
    "onnxruntime": of_onnxruntime,
    **dict.fromkeys(("fbgemm", "x86", "onednn", "qnnpack"), of_pytorch),
    "inductor": of_inductor,
}
"""Target -> the check that the operators of a session are integer kernels between the borders."""


SHORT = {"onnxruntime", "fbgemm"}
"""The targets that the short run looks at; fbgemm stands for PyTorch's engines, with one example an operator."""


COMPILED = {"inductor"}
"""The targets that compile each file for each size of batch, half a minute: one example an operator, one size, one recipe."""


def later(target: Target, operator: str, example: Example) -> tuple[pytest.MarkDecorator, ...]:
    """One and three dimensions are slow ones, but for the first example of each operator; most of PyTorch's engines too."""
    first, flat = example is EXAMPLES[operator][0], operator[-2:] in ("1d", "3d")
    short = first if target.name == "onnxruntime" else first and not flat and target.name in SHORT
    return () if short or (target.name == "onnxruntime" and not flat) else (pytest.mark.slow,)


everywhere = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
mostly = pytest.mark.parametrize(
    "target", [pytest.param(t, id=n, marks=() if n in SHORT else (pytest.mark.slow,)) for n, t in TARGETS.items()]
)
examples = pytest.mark.parametrize(
    ("target", "operator", "example"),
    [
        pytest.param(target, op, e, id=f"{target.name}-{e.name}", marks=later(target, op, e))
        for target in TARGETS.values()
        for op in target.ability(target.isas[0]).operators
        for e in EXAMPLES.get(op, ())
        if target.name not in COMPILED or e is EXAMPLES[op][0]
    ],
)
networks = pytest.mark.parametrize(
    ("target", "example", "recipe"),
    [
        pytest.param(target, e, recipe, id=f"{target.name}-{e.name}-{recipe}", marks=() if short else (pytest.mark.slow,))
        for target in TARGETS.values()
        for e in WHOLE
        for recipe in ("w8a8", "portable")
        if target.name not in COMPILED or recipe == "w8a8"
        for short in [
            recipe == "w8a8"
            and target.name not in COMPILED
            and (target.name == "onnxruntime" or e in WHOLE[: 4 if target.name in SHORT else 1])
        ]
    ],
)


@everywhere
def test_every_rule_cites_a_source_on_every_instruction_set(target: Target) -> None:
    for isa in target.isas:
        ability = target.ability(isa)
        assert (ability.target, ability.isa) == (target.name, isa)
        assert ability.saturation_source
        for operator, rule in ability.operators.items():
            assert rule.kernel and "." in rule.source or ":" in rule.source, f"{operator}: {rule.source!r} is no source"


@everywhere
def test_every_operator_of_the_rules_has_an_example(target: Target) -> None:
    assert set(target.ability(target.isas[0]).operators) <= set(EXAMPLES)


@pytest.mark.runtime
@examples
def test_the_runtime_gives_the_predicted_integers(target: Target, operator: str, example: Example) -> None:
    rule = target.ability(target.detect_isa()).operators[operator]
    made = quantized(example, target=target.name)
    kinds = [step.kernel for step in made.program().steps if step.grid is not None]
    verdict = exactq.verify(made, [batch(example, 64, 3, 1.5)], inputs=64)
    undecided = [step.inexact for step in made.program().steps if step.inexact and step.covers]
    assert all(any(reason in line for line in verdict.unverified) for reason in undecided)
    if verdict.unverified and (undecided or not in_integers(made)):
        assert (verdict.mismatches, verdict.inputs) == (0, 64), verdict
        return
    if isinstance(rule, Computes | Makes):
        assert len([k for k in kinds if k != "constant" and not k.startswith("aten.")]) >= 2
    assert (verdict.mismatches, verdict.unverified) == (0, ()), verdict
    assert verdict.inputs == 64
    assert verdict.equal
    assert {t.name for t in verdict.tensors} == {n for n in made.grids if n not in made.float_graph.constants}
    if example.integers:
        assert made.coverage() == 1.0
        FUSED[target.name](verdict.operators, made)


@pytest.mark.runtime
@networks
def test_whole_networks_give_the_predicted_integers(target: Target, example: Example, recipe: str) -> None:
    made = quantized(example, target=target.name, recipe=recipe)
    sizes = (7,) if target.name in COMPILED else (1, 2, 7, 64)
    verdict = exactq.verify(made, [batch(example, size, size, 1.5) for size in sizes], inputs=sum(sizes))
    assert (verdict.mismatches, verdict.inputs) == (0, sum(sizes)), verdict
    assert verdict.equal
    if example.integers and in_integers(made):
        assert verdict.unverified == ()
        FUSED[target.name](verdict.operators, made)


def in_integers(made: Quantized) -> bool:
    """Whether the target has an integer kernel for everything in the network; copies are nothing to it."""
    rules = made.target.ability(made.plan.isa).operators
    asked = [(rules.get(op_name(n)), n) for n in made.float_graph.calls if op_name(n) != "aten.clone"]
    return all(rule is not None and rule.declines(node) is None for rule, node in asked)


@everywhere
@pytest.mark.parametrize("example", WHOLE[3:6], ids=lambda e: e.name)
def test_every_step_that_makes_codes_says_how_one_of_them_comes_about(target: Target, example: Example) -> None:
    for isa in target.isas:
        steps = [s for s in quantized(example, target=target.name).program(isa).steps if s.grid and s.kernel != "constant"]
        assert steps
        assert [s.name for s in steps if s.anatomy is None] == []


@mostly
def test_the_same_model_gives_the_same_bytes(target: Target) -> None:
    example = WHOLE[0]
    first, again = quantized(example, target=target.name), quantized.__wrapped__(example, target=target.name)
    assert first is not again
    assert first.artifact() == again.artifact()


@mostly
def test_files_tell_nothing_about_where_they_were_made(target: Target) -> None:
    for example in WHOLE[3:]:
        data = quantized(example, target=target.name).artifact()
        for place in (b"/tmp", b"site-packages", b"Traceback", b".py", b"2026", __file__.encode(), b"pkg.torch"):
            assert place not in data, (example.name, place)


@mostly
def test_an_emulator_does_not_touch_its_inputs_and_gives_the_same_twice(target: Target) -> None:
    from exactq.traces import walk

    made = quantized(WHOLE[4], target=target.name)
    inputs = batch(WHOLE[4], 3, 5)
    before = [x.clone() for x in inputs]
    for isa in target.isas:
        program = made.program(isa)
        first, second = walk(program, inputs), walk(program, inputs)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


@everywhere
def test_a_target_is_found_by_its_name_with_or_without_an_instruction_set(target: Target) -> None:
    assert target_named(target.name) == (target, target.detect_isa())
    for isa in target.isas:
        assert target_named(f"{target.name}@{isa}") == (target, isa)
    with pytest.raises(UsageError, match="instruction set"):
        target_named(f"{target.name}@z80")


def test_an_unknown_target_is_answered_with_a_close_name() -> None:
    with pytest.raises(UsageError, match="did you mean 'onnxruntime'"):
        target_named("onnxruntim")
