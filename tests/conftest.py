"""What every test shares: where data and caches are, which tests are slow, and that CI never skips a runtime in silence."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported: a core a worker, a thread each
if DATA.is_dir():
    os.environ.setdefault("EXACTQ_DATA", str(DATA))

settings.register_profile("exactq", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("exactq")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data, `EXACTQ_DATA`; a test that needs it is skipped where there is none."""
    path = os.environ.get("EXACTQ_DATA")
    if not path or not Path(path).is_dir():
        pytest.skip("EXACTQ_DATA names no folder of real data")
    return Path(path)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests too, as EXACTQ_SLOW=1 does")


def pytest_configure(config: pytest.Config) -> None:
    if "EXACTQ_CACHE" not in os.environ:  # one for this run, which xdist's workers inherit; never the user's own
        cache = tempfile.TemporaryDirectory(prefix="exactq-cache-", ignore_cleanup_errors=True)
        os.environ["EXACTQ_CACHE"] = cache.name
        config.add_cleanup(cache.cleanup)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow") or os.environ.get("EXACTQ_SLOW") or "slow" in config.option.markexpr:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    items[:] = [item for item in items if not item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)


@pytest.hookimpl(trylast=True)  # after the terminal has counted
def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("CI") and _skipped_runtimes(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in _skipped_runtimes(config):
        terminalreporter.write_line(f"a runtime's test was skipped{' (CI must run it)' * ('CI' in os.environ)}: {line}")


def _skipped_runtimes(config: pytest.Config) -> list[str]:
    """The skips that leave a runtime untested: of a test marked `runtime`, or of a file whose import was skipped."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    reports = terminal.stats.get("skipped", []) if terminal else []
    named = [(r, str(r.longrepr[2] if isinstance(r.longrepr, tuple) else r.longrepr)) for r in reports]
    wrong = {r.nodeid: why for r, why in named if "runtime" in getattr(r, "keywords", ()) or "could not import" in why}
    return [f"{name}: {why}" for name, why in wrong.items()]
