"""Functions out of a user's own file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from exactq import pythonfile
from exactq.errors import DataError, ModelError, UsageError


def write(folder: Path, text: str, name: str = "mine.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.parametrize(
    ("spec", "answer"),
    [
        ("a.py:f", True),
        ("a.py", True),
        ("b/a.py:f", True),
        ("digits", False),
        ("npz:a.npz", False),
        ("a.pyc:f", False),
        ("", False),
    ],
)
def test_a_python_file_is_told_by_its_name(spec: str, *, answer: bool) -> None:
    assert pythonfile.is_named(spec) is answer


def test_the_function_comes_out_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "def f(): return 42")
    assert pythonfile.function(f"{file}:f", ModelError)() == 42


def test_an_edited_file_is_run_again_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    file = write(tmp_path, "class A: pass\nSIZE = 1\ndef f(): return SIZE")
    first = pythonfile.function(f"{file}:A", ModelError)
    assert pythonfile.function(f"{file}:A", ModelError) is first
    write(tmp_path, "class A: pass\nSIZE = 2\ndef f(): return SIZE")
    assert pythonfile.function(f"{file}:f", ModelError)() == 2


def test_modules_beside_the_file_can_be_imported_and_the_path_is_as_before(tmp_path: Path) -> None:
    write(tmp_path, "VALUE = 7", "beside_mine_for_test.py")
    file = write(tmp_path, "from beside_mine_for_test import VALUE\ndef f(): return VALUE")
    before = list(sys.path)
    assert pythonfile.function(f"{file}:f", ModelError)() == 7
    assert sys.path == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\nx = 1 / 0\ndef f(): pass", "mine.py:2: ZeroDivisionError: division by zero"),
        ("\n\ndef f(:\n", "mine.py:3: SyntaxError: invalid syntax"),
        ("import sys\nsys.exit('enough')", "mine.py:2: SystemExit: enough"),
        ("import surely_not_there", "mine.py:1: ModuleNotFoundError: No module named 'surely_not_there'"),
    ],
)
def test_what_fails_in_the_file_is_told_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ModelError) as raised:
        pythonfile.function(f"{file}:f", ModelError)
    assert str(raised.value).endswith(said)
    assert "\n" not in str(raised.value)


def test_the_line_is_the_deepest_in_the_users_file(tmp_path: Path) -> None:
    spec = write(tmp_path, "import json\ndef g():\n    return json.loads('{')\ndef f():\n    return g()") + ":f"
    function = pythonfile.function(spec, DataError)
    with pytest.raises(DataError, match=r"mine.py:3: JSONDecodeError"), pythonfile.told(spec, DataError):
        function()


def test_a_bad_name_is_answered_with_the_right_one(tmp_path: Path) -> None:
    file = write(tmp_path, "def factory(): pass\nclass Net: pass\ndef _hidden(): pass\nSIZE = 3")
    with pytest.raises(
        UsageError, match=r"unknown function in .*mine.py 'factry': did you mean 'factory'. Known: Net, factory$"
    ):
        pythonfile.function(f"{file}:factry", ModelError)
    with pytest.raises(UsageError, match=r"names no function: write .*mine.py:FUNCTION, it has factory, Net$"):
        pythonfile.function(file, ModelError)
    with pytest.raises(UsageError, match="is a int: a function is needed"):
        pythonfile.function(f"{file}:SIZE", ModelError)
    with pytest.raises(DataError, match=r"there is no file .*none.py"):
        pythonfile.function(str(tmp_path / "none.py:f"), DataError)
