"""A run folder appears whole or not at all, and only a run replaces it."""

from __future__ import annotations

from pathlib import Path

import pytest

from exactq.errors import UsageError
from exactq.runs.folder import check_replaceable, read_manifest, staged, write_manifest

FACTS = {"exactq": "0", "artifact": "model.bin", "data": "digits"}


def publish(out: Path, text: str) -> None:
    with staged(out) as folder:
        (folder / "model.bin").write_text(text)
        write_manifest(folder, FACTS)


def test_the_folder_appears_when_the_block_ends_and_replaces_an_earlier_run(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "run"
    for text in ("first", "second"):
        publish(out, text)
        assert (out / "model.bin").read_text() == text
        assert [p.name for p in out.parent.iterdir()] == ["run"]
    assert list(read_manifest(out)["sha256"]) == ["model.bin"]


def fail(out: Path, error: type[BaseException]) -> None:
    with staged(out) as folder:
        (folder / "half").write_text("x")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_where_the_block_raises_all_is_as_before(tmp_path: Path, error: type[BaseException]) -> None:
    publish(tmp_path / "old", "first")
    for out in (tmp_path / "old", tmp_path / "new" / "deep" / "run"):
        with pytest.raises(error):
            fail(out, error)
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old" / "model.bin").read_text() == "first"


def test_an_empty_folder_is_taken_and_a_folder_within_a_run_is_foreign(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    publish(tmp_path / "empty", "x")
    (tmp_path / "empty" / "mine").mkdir()
    with pytest.raises(UsageError, match=r"\(mine\)"):
        check_replaceable(tmp_path / "empty")


def test_a_broken_link_and_a_folder_above_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UsageError, match="is a link"):
        check_replaceable(tmp_path / "link")
    monkeypatch.chdir(tmp_path)
    for out in (".", "..", "/", str(tmp_path)):
        with pytest.raises(UsageError, match="choose one below"):
            check_replaceable(Path(out))
