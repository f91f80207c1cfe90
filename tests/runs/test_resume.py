"""A run that is killed at any moment goes on to the same bytes: plan, quantized graph and artifact, a training in between."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from exactq import runs

SAME = ("plan.yaml", "graph.json", "graph.safetensors", "float.json", "float.safetensors", "model.onnx")
RECIPE = "weights: int2-narrow\n"


def start(out: Path, recipe: Path) -> int:
    """A process that makes the run; the kill that may come takes nothing but it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            runs.run("simplecnn", recipe=str(recipe), epochs=6, out=str(out))
            code = 0
        finally:
            os._exit(code)
    return child


def made(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in SAME}


@pytest.mark.slow
@pytest.mark.runtime
def test_killed_at_fifty_random_moments_a_run_ends_the_same(tmp_path: Path) -> None:
    recipe = tmp_path / "w2.yaml"
    recipe.write_text(RECIPE)
    begun = time.monotonic()
    assert os.waitpid(start(tmp_path / "whole", recipe), 0)[1] == 0
    wanted, seconds = made(tmp_path / "whole"), time.monotonic() - begun
    chance, kills, ends = random.Random(7), 0, 0
    while kills < 50:
        child = start(tmp_path / "run", recipe)
        limit = time.monotonic() + chance.uniform(0, 1.2 * seconds)
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < limit:
            time.sleep(0.005)
        if ended[0] == 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
            continue
        assert ended[1] == 0
        assert made(tmp_path / "run") == wanted
        ends += 1
    assert os.waitpid(start(tmp_path / "run", recipe), 0)[1] == 0
    assert made(tmp_path / "run") == wanted
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "w2.yaml", "whole"]
    assert ends > 0  # kills were spread over a whole run and not over its beginning alone
