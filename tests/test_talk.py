"""The talk of a library: none."""

from __future__ import annotations

import pytest

from exactq.talk import SILENT


def test_a_library_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    SILENT.say("note       x")
    SILENT.show("plan", ("value",), [("x",)])
    with SILENT.track("calibrate", 3) as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")
