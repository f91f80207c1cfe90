"""What is kept between runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exactq import cache
from exactq.errors import UsageError


def test_the_folder_is_the_one_asked_for_and_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXACTQ_CACHE", str(tmp_path / "a" / "b"))
    assert cache.folder() == tmp_path / "a" / "b"
    assert cache.folder().is_dir()


def test_without_a_wish_the_folder_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXACTQ_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "xdg" / "exactq"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert cache.folder() == tmp_path / "me" / ".cache" / "exactq"


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EXACTQ_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(UsageError, match="set EXACTQ_CACHE to one that can"):
        cache.folder()


PARTS = st.lists(st.one_of(st.text("ab1", max_size=2), st.integers(0, 11), st.binary(max_size=2)), max_size=2)


@given(PARTS, PARTS)
def test_two_lists_share_a_key_only_if_they_are_equal(a: list[str | int | bytes], b: list[str | int | bytes]) -> None:
    assert (cache.key(*a) == cache.key(*b)) == (a == b)
