"""Only a run replaces a run folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from exactq.errors import UsageError
from exactq.runs.folder import check_replaceable, write_manifest

FACTS = {"exactq": "0", "artifact": "model.bin", "data": "digits"}


def test_an_empty_folder_is_taken_and_a_folder_within_a_run_is_foreign(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check_replaceable(tmp_path / "empty")
    (tmp_path / "empty" / "model.bin").write_text("x")
    write_manifest(tmp_path / "empty", FACTS)
    check_replaceable(tmp_path / "empty")
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
