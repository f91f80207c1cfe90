"""The state file: whole, of one training, and never run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from exactq.errors import UsageError
from exactq.training.checkpoint import Checkpoint, load, save

TENSORS = {"a": torch.arange(3.0), "b": torch.tensor(5, dtype=torch.int64), "view": torch.arange(6).reshape(2, 3).t()}


def test_it_reads_back_to_the_last_bit(tmp_path: Path) -> None:
    facts = {"loss": 0.1 + 0.2, "history": [{"score": -1e-300}], "best": None}
    path = tmp_path / "folder" / "state.safetensors"
    save(Checkpoint("job", facts, TENSORS), path)
    found = load(path, "job")
    assert found is not None
    assert found.facts == facts
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in TENSORS.items())
    assert list(path.parent.iterdir()) == [path]


def test_there_may_be_none(tmp_path: Path) -> None:
    assert load(tmp_path / "none", "job") is None


def test_another_job_or_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    save(Checkpoint("job", {}, TENSORS), path)
    with pytest.raises(UsageError, match="of another training"):
        load(path, "other")
    data = path.read_bytes()
    for damaged in (data[:20], data[:-3], b"", b"\x80\x04K\x01.", torch.nn.Linear.__doc__.encode()):
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match="no state of a training, or a damaged one: delete it"):
            load(path, "job")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot be written to .*: .*; choose another file"):
        save(Checkpoint("job", {}, TENSORS), tmp_path / "file" / "state")
