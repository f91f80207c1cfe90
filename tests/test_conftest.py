"""conftest.py itself, in a session of its own: which tests run by default, and which skips CI does not forgive."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BEGIN = "import pytest\n"
RUNTIME = "@pytest.mark.runtime\ndef test_real(): pytest.skip('no runtime here')\n"
FINE = "def test_fine(): pass\n"


@pytest.fixture
def session(tmp_path: Path):
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow: s\n    runtime: r\n")

    def run(test: str, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "test_it.py").write_text(BEGIN + test)
        clean = {k: v for k, v in os.environ.items() if k not in ("CI", "EXACTQ_SLOW") and not k.startswith("PYTEST")}
        command = [sys.executable, "-m", "pytest", *options]
        return subprocess.run(command, cwd=tmp_path, env=clean | env, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["alone", "workers"])
def test_what_leaves_a_runtime_untested_fails_on_ci_and_is_named(session, tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "test_import.py").write_text(BEGIN + "pytest.importorskip('no_such_runtime')\n")
    done = session(RUNTIME + FINE, *options, CI="true")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "a runtime's test was skipped (CI must run it): test_it.py::test_real: Skipped: no runtime here" in done.stdout
    assert "a runtime's test was skipped (CI must run it): test_import.py: Skipped: could not import" in done.stdout


def test_elsewhere_a_skipped_runtime_is_only_named(session) -> None:
    done = session(RUNTIME)
    assert done.returncode == pytest.ExitCode.OK
    assert "a runtime's test was skipped: test_it.py::test_real" in done.stdout


def test_missing_data_is_forgiven_on_ci(session) -> None:
    done = session("def test_data(data): pass\n", CI="true", EXACTQ_DATA="/nowhere")
    assert done.returncode == pytest.ExitCode.OK
    assert "1 skipped" in done.stdout


@pytest.mark.parametrize(
    ("options", "env", "count"),
    [((), {}, 1), (("--slow",), {}, 2), ((), {"EXACTQ_SLOW": "1"}, 2), (("-m", "slow"), {}, 1)],
)
def test_slow_tests_run_when_asked_for(session, options: tuple[str, ...], env: dict[str, str], count: int) -> None:
    done = session("@pytest.mark.slow\ndef test_slow(): pass\n" + FINE, *options, **env)
    assert f"{count} passed" in done.stdout
