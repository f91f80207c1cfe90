"""What a run is asked for, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from exactq.errors import UsageError
from exactq.runs.wishes import SEEDS, Wishes


@pytest.mark.parametrize(
    ("wishes", "folder"),
    [
        ({"model": "simplecnn"}, "runs/simplecnn-onnxruntime"),
        ({"model": "nets/my net.py:make"}, "runs/my-net-make-onnxruntime"),
        ({"model": "größe.py:f", "target": "onnxruntime@avx2"}, "runs/größe-f-onnxruntime"),
        ({"model": "simplecnn", "out": "a b/c"}, "a b/c"),
    ],
)
def test_a_run_has_a_folder_that_a_shell_can_name(wishes: dict[str, str], folder: str) -> None:
    assert Wishes(**wishes).folder == Path(folder)


@pytest.mark.parametrize("seed", [0, SEEDS - 1])
def test_both_ends_of_the_seeds_are_seeds(seed: int) -> None:
    assert Wishes("simplecnn", seed=seed).seed == seed


def test_a_plan_for_the_asked_target_is_taken_whatever_this_machine_is(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("exactq: 1\ntarget: onnxruntime\nisa: avx2\nrecipe: r\nvalues: {x: {float: why}}\n")
    for target in ("onnxruntime", "onnxruntime@avx2"):
        plan = Wishes("m", plan=str(path), target=target).given_plan()
        assert plan is not None
        assert plan.isa == "avx2"
    path.write_text(path.read_text().replace("avx2", "avx9"))
    with pytest.raises(UsageError, match="unknown instruction set of onnxruntime 'avx9'"):
        Wishes("m", plan=str(path)).given_plan()
    path.write_text(path.read_text().replace("target: onnxruntime", "target: litert"))
    with pytest.raises(UsageError, match=r"is for litert@avx9, and --target says onnxruntime"):
        Wishes("m", plan=str(path)).given_plan()
