"""A run appears whole or not at all; what was finished before it ended is found again, and only under the same key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from exactq.datasets.splits import Dataset, in_memory
from exactq.errors import ModelError, UsageError
from exactq.runs.folder import write_manifest
from exactq.runs.workplace import KEPT, Workplace, working

DATA = Dataset("ones", in_memory((torch.ones(2, 1),)), in_memory((torch.ones(2, 1),)))
FACTS = {"exactq": "0", "artifact": "model.bin", "data": "digits"}


def whole(text: str, folder: Path) -> None:
    (folder / "model.bin").write_text(text)
    write_manifest(folder, FACTS)


def publish(out: Path, text: str) -> None:
    with working(out) as work:
        work.publish(lambda folder: whole(text, folder))


def read(folder: Path) -> str:
    text = (folder / "made").read_text()
    if text == "damaged":
        raise ModelError("damaged")
    return text


def stage(work: Workplace, key: str, text: str) -> str:
    return work.stage("a", key, DATA, lambda folder: (folder / "made").write_text(text) and None, read)


def test_a_run_appears_when_it_is_whole_and_replaces_an_earlier_one(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "run"
    for text in ("first", "second"):
        publish(out, text)
        assert (out / "model.bin").read_text() == text
        assert [p.name for p in out.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_where_nothing_was_finished_all_is_as_before(tmp_path: Path, error: type[BaseException]) -> None:
    publish(tmp_path / "old", "first")
    for out in (tmp_path / "old", tmp_path / "new" / "deep" / "run"):
        with pytest.raises(error) as raised, working(out) as work:
            work.stage("a", "1", DATA, lambda folder: fail(error), read)
        assert getattr(raised.value, "__notes__", []) == []
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old" / "model.bin").read_text() == "first"


def fail(error: type[BaseException]) -> None:
    raise error


def interrupted(out: Path, error: type[BaseException], do: Callable[[Workplace], None]) -> None:
    with working(out) as work:
        do(work)
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_finished_stage_is_kept_and_found_under_its_key_alone(tmp_path: Path, error: type[BaseException]) -> None:
    found = []
    for key, text in (("1", "first"), ("1", "second"), ("2", "second")):
        with pytest.raises(error) as raised:
            interrupted(tmp_path / "run", error, lambda work, key=key, text=text: found.append(stage(work, key, text)))  # type: ignore[misc]
        assert raised.value.__notes__ == [KEPT]
    assert found == ["first", "first", "second"]
    assert sorted(p.name for p in (tmp_path / ".run.unfinished").iterdir()) == ["a.2", "lock"]
    publish(tmp_path / "run", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_damaged_stage_and_the_rest_of_a_killed_one_are_made_again(tmp_path: Path) -> None:
    (tmp_path / ".run.unfinished" / "a.1").mkdir(parents=True)
    (tmp_path / ".run.unfinished" / "a.1" / "made").write_text("damaged")
    (tmp_path / ".run.unfinished" / "a.1" / "remarks.json").write_text("[]")
    (tmp_path / ".run.unfinished" / "a.making").mkdir()
    (tmp_path / ".run.unfinished" / "a.making" / "rest").write_text("x")
    with working(tmp_path / "run") as work:
        assert stage(work, "1", "whole") == "whole"
        assert sorted(p.name for p in (work.folder / "a.1").iterdir()) == ["made", "remarks.json"]


def test_a_run_killed_between_two_renames_comes_back(tmp_path: Path) -> None:
    publish(tmp_path / "run", "first")
    (tmp_path / "run").rename(tmp_path / ".run.replaced")
    seen = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "run", KeyboardInterrupt, lambda work: seen.append((work.place / "model.bin").read_text()))
    assert seen == ["first"]
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_two_runs_do_not_work_for_one_place(tmp_path: Path) -> None:
    with working(tmp_path / "run"):
        with pytest.raises(UsageError, match=r"another run for .* is at work"), working(tmp_path / "run"):
            pass
        with working(tmp_path / "other"):
            pass
    publish(tmp_path / "run", "x")
