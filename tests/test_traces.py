"""One short loop walks every program."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from exactq.errors import DataError
from exactq.numerics.formats import INT8, Grid
from exactq.traces import Program, Step, trace, walk


def steps() -> tuple[Step, ...]:
    return (
        Step("double", lambda x: x * 2, ("x",), "aten.mul"),
        Step("sum", lambda a, b: a + b, ("double", "y"), "aten.add"),
        Step("square", lambda a: a * a, ("sum",), "aten.mul"),
    )


X, Y = torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])


def test_a_walk_gives_the_outputs_in_the_order_asked_for() -> None:
    program = Program(("x", "y"), steps(), ("square", "double", "x"))
    square, double, x = walk(program, (X, Y))
    assert square.tolist() == [144.0, 576.0]
    assert double.tolist() == [2.0, 4.0]
    assert x is X


def test_each_step_is_seen_once_and_in_order() -> None:
    seen: list[str] = []
    walk(Program(("x", "y"), steps(), ("square",)), (X, Y), lambda step, value: seen.append(f"{step.name}={value[0]:g}"))
    assert seen == ["double=2", "sum=12", "square=144"]


def test_the_part_towards_a_value_makes_it_and_leaves_out_the_rest() -> None:
    whole = Program(("x", "y"), (*steps(), Step("unread", lambda x: x / 0, ("x",), "aten.div")), ("square",))
    part = whole.towards(("sum", "x"))
    assert [step.name for step in part.steps] == ["double", "sum"]
    total, x = walk(part, (X, Y))
    assert total.tolist() == [12.0, 24.0]
    assert x is X
    with pytest.raises(DataError, match="the outputs \\['cube'\\] are made by no step"):
        whole.towards(("cube",))


def test_a_trace_keeps_what_it_is_asked_for_in_order() -> None:
    program = Program(("x", "y"), steps(), ("square",))
    assert list(trace(program, (X, Y))) == ["double", "sum", "square"]
    assert list(trace(program, (X, Y), keep={"square", "double"})) == ["double", "square"]


def test_codes_come_in_the_dtype_of_their_format() -> None:
    grid = Grid(INT8, torch.tensor(0.5), torch.tensor(0, dtype=torch.int32))
    step = Step("code", lambda x: torch.round(x / 0.5), ("x",), "quantize", grid)
    kept = trace(Program(("x",), (step,), ("code",)), (X,))
    assert kept["code"].dtype == torch.int8
    assert kept["code"].tolist() == [2, 4]


def test_a_kept_value_is_a_copy_that_a_later_step_cannot_change() -> None:
    buffer = torch.zeros(1)
    program = Program(("x",), (Step("a", lambda _: buffer, ("x",), "f"), Step("b", lambda a: a.add_(1), ("a",), "g")), ("b",))
    assert trace(program, (X,))["a"].tolist() == [0.0]


def test_what_is_no_tensor_passes_by_and_is_not_kept() -> None:
    several = Step("two", lambda x: (x, x + 1), ("x",), "f")  # type: ignore[arg-type,return-value]
    second = Step("two.1", lambda two: two[1], ("two",), "getitem")
    assert list(trace(Program(("x",), (several, second), ("two.1",)), (X,))) == ["two.1"]


def test_values_are_dropped_after_their_last_use() -> None:
    alive: list[int] = []

    class Counted:
        count = 0

        def __init__(self) -> None:
            Counted.count += 1

        def __del__(self) -> None:
            Counted.count -= 1

    def make(*_: object) -> Tensor:
        alive.append(Counted.count)
        return Counted()  # type: ignore[return-value]

    chain = tuple(Step(f"s{n + 1}", make, (f"s{n}",), "f") for n in range(6))
    walk(Program(("s0",), chain, ("s6",)), (X,))
    assert max(alive) <= 2


def test_an_input_that_nothing_reads_is_no_error() -> None:
    assert walk(Program(("x", "unused"), steps()[:1], ("double",)), (X, Y))[0].tolist() == [2.0, 4.0]


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (lambda: Program(("x",), steps(), ("square",)), "step 'sum' reads ['y'], which nothing before it makes"),
        (lambda: Program(("x", "y"), (*steps(), steps()[0]), ("square",)), "'double' is made twice"),
        (lambda: Program(("x", "y"), steps(), ("cube",)), "the outputs ['cube'] are made by no step"),
    ],
)
def test_a_program_that_exists_is_valid(program: object, message: str) -> None:
    with pytest.raises(DataError) as error:
        program()  # type: ignore[operator]
    assert str(error.value) == message


def test_the_number_of_inputs_is_checked() -> None:
    with pytest.raises(DataError, match="1 inputs given, the program takes 2: x, y"):
        walk(Program(("x", "y"), steps(), ("square",)), (X,))
