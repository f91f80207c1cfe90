"""One element in full: its text and JSON, where fused and moved codes come from, and what has no integer to explain."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import nets
from tests.targets.networks import EXAMPLES, WHOLE, Example, batch, quantized
from torch import nn

import exactq
from exactq.errors import DataError, UsageError
from exactq.explanation import explain, explain_layers
from exactq.quantized import Quantized
from exactq.traces import Program, Step, trace

from .models import IMAGE, by_hand

TEXT = """\
1[0,0,1,1] = code 81, real 0.64125
onnxruntime@avx512vnni, mlas.conv
(`0` has no codes of its own: its int32 is the accumulator of the kernel that
makes `1`)
(`0` and `1` are one kernel: the activation is the grid's end, reals are
0..2.01875)

input        `input`: uint8 codes, real = 0.003921569 · (code − 64)
products     Σ (x − 64) · w over 4 terms = 5568
             x at       x  x-zx     w at    w   term
             0,0,0,0    0   -64  0,0,0,0   64  -4096
             0,0,0,1   32   -32  0,0,0,1  -32   1024
             0,0,1,1  128    64  0,0,1,1  127   8128
             1 more                              512
zero points  raw codes: Σ x · w = 16768 − 64 · Σ w (175) = 5568
bias         0.3 / fl(sx · sw) = 0.3 / 6.175699e-05 = 4857.74994, code 4858;
             rounding it costs 1.54e-05, 0.002 LSB
accumulator  5568 + 4858 = 10426, 17.7 bits below int32's end
multiplier   fl(fl(sx · sw) / sy) = fl(fl(0.003921569 · 0.015748031) /
             0.007916667) = 0.007800883, exactly 16752269 · 2^-31
multiply     fl(fl(10426) · 0.007800883) = 81.33201
clamp        81.33201 is within 0..255 and stays
round        rint(81.33201) = 81
zero         81 + 0 = 81
real         fl((81 − 0) · 0.007916667) = 0.64125
float model  the float model has 0.64375, whose code is 81: the real is -0.316
             LSB from it"""


def example(operator: str, number: int = 0) -> Example:
    return EXAMPLES[operator][number]


def test_the_text_has_every_number_in_its_place() -> None:
    assert str(explain(by_hand(), "0", (0, 0, 1, 1), (IMAGE,), terms=3)) == TEXT


def test_the_json_has_the_same_numbers_by_name() -> None:
    found = json.loads(json.dumps(explain(by_hand(), "0", (0, 0, 1, 1), (IMAGE,), terms=3).to_json(), allow_nan=False))
    assert {key: found[key] for key in ("node", "index", "made", "kernel", "target", "code")} == {
        "node": "0",
        "index": [0, 0, 1, 1],
        "made": "1",
        "kernel": "mlas.conv",
        "target": "onnxruntime@avx512vnni",
        "code": 81,
    }
    assert found["real"] == float(np.float32(0.64125))
    assert found["float"] == pytest.approx(0.64375, abs=1e-7)
    steps = {step["name"]: step for step in found["steps"]}
    names = "input products,zero points,bias,accumulator,multiplier,multiply,clamp,round,zero,real,float model"
    assert list(steps) == names.replace("input ", "input,").split(",")
    assert steps["products"]["rows"][0] == {
        "x_at": [0, 0, 0, 0],
        "x": 0,
        "centred": -64,
        "w_at": [0, 0, 0, 0],
        "w": 64,
        "term": -4096,
    }
    assert steps["products"]["rows"][-1] == {"more": 1, "term": 512}
    assert (steps["bias"]["held"], steps["bias"]["value"]) == ("int32", 4858)
    assert steps["multiplier"]["value"] * 2**31 == 16752269
    assert all({"name", "text", "value"} <= set(step) for step in found["steps"])


def test_a_fused_sum_shows_the_code_that_is_added_its_grid_and_the_real_that_comes_of_both() -> None:
    made, inputs, at = quantized(WHOLE[0], target="onednn"), batch(WHOLE[0], 2, 5), (1, 3, 4, 5)
    found = explain(made, "0.3.conv2", at, inputs)
    steps = {step.name: step for step in found.steps}
    shortcut, codes = found.steps[1], trace(made.program(), inputs)["0.2/codes"]
    assert (shortcut.values["of"], shortcut.value, shortcut.values["at"]) == ("0.2", int(codes[at]), at)
    before, added = float(steps["add bias"].value), (shortcut.value - shortcut.values["zero"]) * shortcut.values["scale"]
    assert float(steps["add codes"].value) == pytest.approx(before + added, rel=2.0**-22, abs=2.0**-22)
    assert steps["add codes"].values["code"] == shortcut.value
    assert "are one kernel: the activation is the grid's end" in found.notes[1]


def test_a_tie_goes_to_the_even_neighbour_and_that_is_said() -> None:
    made = quantized(example("aten.conv2d"))
    grid = made.grids["inputs_0"]
    x = torch.zeros(1, 3, 7, 7)
    x[0, 0, 0, :2] = torch.tensor([0.5, 1.5]) * grid.scale
    for place, whole in ((0, 0), (1, 2)):
        found = {line.name: line for line in explain(made, "inputs_0", (0, 0, 0, place), (x,)).steps}
        assert (found["round"].value, found["round"].values["tie"]) == (whole, True)
        assert "a tie: to the even neighbour" in found["round"].text


def test_saturation_shows_the_pairs_and_what_they_lose_on_avx2_alone() -> None:
    made, bright = quantized(example("aten.conv2d")), (torch.full((1, 3, 7, 7), 50.0),)
    two, one = (explain(made, "b", (0, 1, 2, 3), bright, isa=isa) for isa in ("avx2", "avx512vnni"))
    found = {line.name: line for line in two.steps}
    (row,) = found["saturation"].rows
    assert (row["pair"], row["int16"], row["term"]) == (42339, 32767, 32767 - 42339)
    assert found["saturation"].value == found["accumulator"].values["excess"] == row["term"]
    assert "saturation" not in {line.name for line in one.steps}
    assert two.code < one.code


def test_moved_codes_name_the_place_that_they_come_from() -> None:
    made = quantized(example("aten.slice"))
    inputs = batch(example("aten.slice"), 1, 3)
    name = next(step.name for step in made.program().steps if "slice" in step.kernel).removesuffix("/codes")
    line = explain(made, name, (0, 0, 0, 0), inputs).steps[0]
    assert (line.name, line.values["at"]) == ("move", (0, 1, 0, 0))
    padded = quantized(example("aten.constant_pad_nd", 2))
    border = explain(padded, "pad", (0, 0, 0, 0), inputs).steps[0]
    assert (border.name, border.values["at"]) == ("border", None)
    assert "no element of" in border.text


def test_a_value_made_in_a_float_island_says_that_its_bits_are_not_known() -> None:
    made = nets.quantized("float island")
    found = explain(made, "tanh", (0, 0, 0, 0))
    assert found.kernel == "mlas.quantize_linear"
    assert any("not proven" in note and "`tanh`" in note for note in found.notes)
    assert any("float island" in note for note in explain(made, "b", (0, 0, 0, 0)).notes)


def test_inputs_that_were_not_given_are_drawn_and_that_is_said() -> None:
    found = exactq.explain(by_hand(), "0", at=(0, 0, 1, 1))
    assert found.notes[-1].startswith("no inputs were given")
    assert found.steps == exactq.explain(by_hand(), "0", at=(0, 0, 1, 1)).steps


def test_a_saved_model_is_explained_as_the_model_itself(tmp_path: Path) -> None:
    folder = by_hand().save(tmp_path / "model")
    assert exactq.explain(folder, "0", (0, 0, 1, 1), inputs=IMAGE) == exactq.explain(by_hand(), "0", (0, 0, 1, 1), inputs=IMAGE)


def test_reals_that_are_not_finite_have_codes_and_leave_the_json_whole() -> None:
    made = by_hand()
    for value, code in ((float("nan"), 0), (float("inf"), 255), (float("-inf"), 0)):
        found = explain(made, "input", (0, 0, 0, 0), (torch.full((1, 1, 3, 3), value),))
        assert found.code == code
        facts = found.to_json()
        assert (facts["float"], facts["error_lsb"]) == (None, None)
        json.dumps(facts, allow_nan=False)
        assert str(found)


def test_each_layer_gives_its_worst_integer() -> None:
    made = quantized(WHOLE[4])
    inputs = batch(WHOLE[4], 3, 5)
    found = list(explain_layers(made, inputs))
    assert [one.made for one in found] == ["relu", "b", "c"]
    for one in found:
        assert one == replace(explain(made, one.made, one.index, inputs), node=one.made)
        assert one.error_lsb is not None
        codes = exactq.traces.trace(made.program(), inputs)[f"{one.made}/codes"]
        assert one.code == int(codes[one.index])


def test_an_explanation_that_does_not_come_to_the_emulators_code_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    made = by_hand()
    true = made.program()

    def wrong(self: Quantized, isa: str | None = None) -> Program:
        def off(step: Step) -> Step:
            return replace(step, run=lambda *x: step.run(*x) + 1) if step.name == "1/codes" else step

        return replace(true, steps=tuple(map(off, true.steps)))

    monkeypatch.setattr(Quantized, "program", wrong)
    with pytest.raises(AssertionError, match=r"the explanation of `1/codes` at \(0, 0, 1, 1\) comes to 81, the emulator to 82"):
        explain(made, "0", (0, 0, 1, 1), (IMAGE,))


@pytest.mark.parametrize(
    ("node", "at", "message"),
    [
        ("0", (0, 0, 4, 0), r"the index 0,0,4,0 is outside of `0`, whose shape is \(1, 1, 4, 4\): axis 2 takes 0..3"),
        ("0", (1, 0, 0, 0), "axis 0 takes 0..0"),
        ("0", (0, 0, 0, -1), "axis 3 takes 0..3"),
        ("0", (0, 0, 0), r"the index 0,0,0 has 3 numbers, `0` has 4 axes: its shape is \(1, 1, 4, 4\)"),
        ("inpt", (0, 0, 0, 0), "unknown value 'inpt': did you mean 'input'"),
        ("0.weight", (0, 0, 0, 0), r"`0.weight` is a constant: explain what reads it \(0\)"),
    ],
)
def test_an_element_that_does_not_exist_is_refused(node: str, at: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        explain(by_hand(), node, at, (IMAGE,))


def test_a_value_that_stays_float_is_refused_with_the_plans_reason() -> None:
    made = quantized(WHOLE[6])
    with pytest.raises(UsageError, match=r"`mul` stays float, so there is no integer to explain: .+") as refused:
        explain(made, "mul", (0, 0, 0, 0))
    assert str(refused.value).endswith(made.plan.slots["mul"].reason)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((IMAGE, IMAGE), "2 inputs given, the model takes 1: input"),
        ((IMAGE[:, 0],), "input `input` is"),
        ((IMAGE.double(),), "torch.float64"),
        ((IMAGE[:0],), "has no sample"),
    ],
)
def test_inputs_that_the_model_does_not_take_are_refused(inputs: tuple[torch.Tensor, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        explain(by_hand(), "0", (0, 0, 0, 0), inputs)


def test_an_instruction_set_that_was_not_measured_and_no_terms_are_refused() -> None:
    with pytest.raises(UsageError, match="instruction set of onnxruntime 'z80'"):
        explain(by_hand(), "0", (0, 0, 0, 0), isa="z80")
    with pytest.raises(UsageError, match="0 terms cannot be shown"):
        explain(by_hand(), "0", (0, 0, 0, 0), terms=0)


def test_only_what_an_element_needs_is_run() -> None:
    made = exactq.quantize(
        nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Conv2d(2, 1, 1)).eval(), (IMAGE,), calibration=[IMAGE]
    )
    part = made.program().towards(("1/codes",))
    assert [step.name for step in part.steps] == ["input/codes", "1/codes"]
    assert part.outputs == ("1/codes",)
