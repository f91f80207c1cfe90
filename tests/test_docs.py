"""Every example of README and docs runs, a page's in order, in one namespace and one folder that begins empty.

A fenced block's tag says how it is read:

`python`           runs; with `>>>` its output is compared as a doctest's
`console`          each `$ line` runs in a shell and must end with exit code 0, or with N where it says `# exit N`
`console compare`  and what it prints must be the lines below it, with `...` for any text
`sh`               installs something: tested by .ci/run, not here
`text`, `yaml`, `json`   show; they are no commands
"""

from __future__ import annotations

import doctest
import html
import importlib.util
import os
import re
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from exactq.cli import VERBS, app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """A fenced block: what it is, its text, and the line of its page on which the text begins."""

    kind: str
    text: str
    line: int


@dataclass(frozen=True)
class Command:
    """A line of a console: what runs, the exit code it promises, what it shows."""

    line: str
    code: int
    shown: str


def blocks(text: str) -> list[Block]:
    return [Block(m["kind"].strip(), m["text"], text.count("\n", 0, m.start("text")) + 1) for m in FENCE.finditer(text)]


def commands(text: str) -> list[Command]:
    found = []
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        line, _, shown = part.replace("\\\n", "").partition("\n")
        code = re.search(r"\s+# exit (\d+)$", line)
        found.append(Command(line[: code.start()] if code else line, int(code[1]) if code else 0, shown))
    return found


def run_python(block: Block, page: Path, namespace: dict[str, Any]) -> None:
    if ">>>" in block.text:
        test = doctest.DocTestParser().get_doctest(block.text, namespace, page.name, str(page), block.line - 1)
        test.globs = namespace  # the parser's copy would forget what the block defines
        said: list[str] = []
        failed = doctest.DocTestRunner(verbose=False, optionflags=OPTIONS).run(test, out=said.append, clear_globs=False).failed
        assert not failed, "".join(said)
    else:
        exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)


def run_console(block: Block, page: Path, folder: Path, *, compare: bool) -> None:
    path = f"{folder / '.bin'}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "100", "NO_COLOR": "1"}
    for c in commands(block.text):
        done = subprocess.run(["bash", "-c", c.line], cwd=folder, env=env, capture_output=True, text=True, check=False)
        told = f"{page.name}:{block.line} $ {c.line}\n{done.stdout}{done.stderr}"
        assert done.returncode == c.code, f"exit code {done.returncode}, not {c.code}: {told}"
        if compare:
            assert doctest.OutputChecker().check_output(c.shown, done.stdout, OPTIONS), f"not what is shown: {told}"


def reference() -> Any:
    """docs/reference.py as a module."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_that_the_program_makes_are_as_it_makes_them() -> None:
    old = [path.name for path, text in reference().pages().items() if path.read_text(encoding="utf-8") != text]
    assert old == [], "run `python docs/reference.py --write`"


def test_every_verb_and_option_has_its_line_on_the_shells_page() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert list(sections) == [verb.__name__ for verb in VERBS]
    commands: Any = typer.main.get_command(app)
    for name, command in commands.commands.items():
        wanted = {max(p.opts, key=len) for p in command.params if p.opts[0].startswith("-")} - {"--help", "--json"}
        assert {option for option in wanted if f"`{option}" not in sections[name]} == set()


def test_readme_lists_every_verb_and_shows_a_real_run() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == [verb.__name__ for verb in VERBS]
    picture = html.unescape((ROOT / "docs" / "images" / "run.svg").read_text(encoding="utf-8")).replace("\xa0", " ")
    shown = re.findall(r"<text[^>]*>([^<]*)</text>", picture)
    assert "exactq run simplecnn --yes" in shown[1] + shown[2]
    assert [line for line in ("verdict", "verified", "latency") if not any(text.startswith(line) for text in shown)] == []


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder in which the shell finds this checkout's exactq."""
    (tmp_path / ".bin").mkdir()
    script = tmp_path / ".bin" / "exactq"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m exactq "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_example_of_the_page_runs(page: Path, folder: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page.read_text(encoding="utf-8")):
        match block.kind.split():
            case ["python"]:
                run_python(block, page, namespace)
            case ["console", *rest] if rest in ([], ["compare"]):
                run_console(block, page, folder, compare=bool(rest))
            case ["sh" | "text" | "yaml" | "json"]:
                pass
            case _:
                pytest.fail(
                    f"{page.name}:{block.line} is tagged '{block.kind}': no example goes unread, see {Path(__file__).name}"
                )


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_of_the_page_leads_to_a_file(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"\w+:", link)]
    assert [link for link in links if link and not (page.parent / link).exists()] == []


def test_a_console_block_is_commands_with_their_codes_and_output() -> None:
    text = "$ exactq a \\\n  --b\nshown\n...\n$ exactq c  # exit 1\n"
    assert commands(text) == [Command("exactq a   --b", 0, "shown\n...\n"), Command("exactq c", 1, "")]


def test_a_block_knows_its_line() -> None:
    assert blocks("a\n```python\nx = 1\n```\n```text\n```\n") == [Block("python", "x = 1\n", 3), Block("text", "", 6)]


def test_a_console_that_fails_or_shows_something_else_is_caught(folder: Path) -> None:
    page = Path("page.md")
    run_console(Block("console", "$ false  # exit 1\n$ echo one two\none ...\n", 1), page, folder, compare=True)
    with pytest.raises(AssertionError, match=r"exit code 1, not 0: page.md:1 \$ false"):
        run_console(Block("console", "$ false\n", 1), page, folder, compare=False)
    with pytest.raises(AssertionError, match="not what is shown"):
        run_console(Block("console compare", "$ echo one\ntwo\n", 1), page, folder, compare=True)


def test_a_python_block_keeps_its_names_and_compares_its_output() -> None:
    page, namespace = Path("page.md"), {}
    run_python(Block("python", "x = 1\n", 1), page, namespace)
    run_python(Block("python", ">>> y = x + 1\n>>> y\n2\n", 3), page, namespace)
    assert namespace["y"] == 2
    with pytest.raises(AssertionError, match=r"Got:\n\s+2"):
        run_python(Block("python", ">>> y\n3\n", 3), page, namespace)
