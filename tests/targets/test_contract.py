"""What every target keeps: each rule cites a source, has a kernel, is written, and the runtime gives the predicted integers."""

from __future__ import annotations

import pytest
import torch

import exactq
from exactq.errors import UsageError
from exactq.plans.rules import Computes, Makes
from exactq.targets import TARGETS, Target, target_named

from .networks import EXAMPLES, WHOLE, Example, batch, quantized
from .onnxruntime.fusion import only_integers

FUSED = {"onnxruntime": only_integers}
"""Target -> the check that the operators of a session are integer kernels between the borders."""


def later(operator: str, example: Example) -> tuple[pytest.MarkDecorator, ...]:
    """One and three dimensions are slow ones, but for the first example of each operator."""
    return (pytest.mark.slow,) if operator[-2:] in ("1d", "3d") and example is not EXAMPLES[operator][0] else ()


everywhere = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
examples = pytest.mark.parametrize(
    ("operator", "example"),
    [pytest.param(op, e, id=e.name, marks=later(op, e)) for op, several in EXAMPLES.items() for e in several],
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
@everywhere
@examples
def test_the_runtime_gives_the_predicted_integers(target: Target, operator: str, example: Example) -> None:
    rule = target.ability(target.detect_isa()).operators.get(operator)
    if rule is None:
        pytest.skip(f"{target.name} has no rule for {operator}")
    made = quantized(example, target=target.name)
    kinds = [step.kernel for step in made.program().steps if step.grid is not None]
    if isinstance(rule, Computes | Makes):
        assert len([k for k in kinds if k.startswith("mlas.")]) >= 2
    verdict = exactq.verify(made, [batch(example, 64, 3, 1.5)], inputs=64)
    assert (verdict.mismatches, verdict.unverified) == (0, ()), verdict
    assert verdict.inputs == 64
    assert verdict.equal
    assert {t.name for t in verdict.tensors} == {n for n in made.grids if n not in made.float_graph.constants}
    if example.integers:
        assert made.coverage() == 1.0
        FUSED[target.name](verdict.operators, made)


@pytest.mark.runtime
@everywhere
@pytest.mark.parametrize("example", WHOLE, ids=lambda e: e.name)
@pytest.mark.parametrize("recipe", ["w8a8", pytest.param("portable", marks=pytest.mark.slow)])
def test_whole_networks_give_the_predicted_integers(target: Target, example: Example, recipe: str) -> None:
    made = quantized(example, target=target.name, recipe=recipe)
    sizes = (1, 2, 7, 64)
    verdict = exactq.verify(made, [batch(example, size, size, 1.5) for size in sizes], inputs=sum(sizes))
    assert (verdict.mismatches, verdict.inputs) == (0, sum(sizes)), verdict
    assert verdict.equal
    if example.integers:
        assert verdict.unverified == ()
        FUSED[target.name](verdict.operators, made)


@everywhere
@pytest.mark.parametrize("example", WHOLE[3:6], ids=lambda e: e.name)
def test_every_step_that_makes_codes_says_how_one_of_them_comes_about(target: Target, example: Example) -> None:
    for isa in target.isas:
        steps = [s for s in quantized(example, target=target.name).program(isa).steps if s.grid and s.kernel != "constant"]
        assert steps
        assert [s.name for s in steps if s.anatomy is None] == []


@everywhere
def test_the_same_model_gives_the_same_bytes(target: Target) -> None:
    example = WHOLE[0]
    first, again = quantized(example, target=target.name), quantized.__wrapped__(example, target=target.name)
    assert first is not again
    assert first.artifact() == again.artifact()


@everywhere
def test_files_tell_nothing_about_where_they_were_made(target: Target) -> None:
    for example in WHOLE[3:]:
        data = quantized(example, target=target.name).artifact()
        for place in (b"/tmp", b"site-packages", b"Traceback", b".py", b"2026", __file__.encode(), b"pkg.torch"):
            assert place not in data, (example.name, place)


@everywhere
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
