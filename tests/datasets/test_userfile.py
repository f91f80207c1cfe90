"""Data that a user's function makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from exactq.datasets.catalog import load
from exactq.datasets.splits import Dataset, Split
from exactq.errors import DataError, UsageError


def made(folder: Path, body: str, calibration: int = 512) -> Dataset:
    (folder / "mine.py").write_text(f"import torch\nfrom torch.utils.data import DataLoader, TensorDataset\n{body}")
    return load(f"{folder / 'mine.py'}:data", calibration=calibration)


def values(split: Split) -> list[float]:
    return [float(v) for batch in split for v in batch.inputs[0].flatten()]


@pytest.mark.parametrize(
    "body",
    [
        "def data(): return [torch.arange(3.), torch.arange(3., 5.)]",
        "def data(): return [(torch.arange(3.), None), (torch.arange(3., 5.), None)]",
        "def data(): return [((torch.arange(3.),), torch.zeros(3)), ([torch.arange(3., 5.)], torch.zeros(2))]",
        "def batches():\n    yield torch.arange(3.)\n    yield torch.arange(3., 5.).double()\ndef data(): return batches",
        "def data(): return DataLoader(TensorDataset(torch.arange(5.), torch.zeros(5)), batch_size=3)",
        "from exactq.datasets.splits import Batch\ndef data(): return [Batch((torch.arange(5.),))]",
        "from exactq.datasets.splits import *\ns = in_memory((torch.arange(5.),))\ndef data(): return Dataset('', s, s)",
    ],
    ids=["tensors", "pairs", "several", "generator", "loader", "batches", "dataset"],
)
def test_loaders_of_all_kinds_are_gone_through_again_and_again(tmp_path: Path, body: str) -> None:
    dataset = made(tmp_path, body, calibration=4)
    for _ in range(2):
        assert values(dataset.calibration) == [0, 1, 2, 3]
        assert values(dataset.evaluation) == [0, 1, 2, 3, 4]


def test_each_split_may_have_its_own_loader(tmp_path: Path) -> None:
    dataset = made(
        tmp_path,
        "labels = torch.zeros(9, dtype=torch.uint8)\n"
        "def data(): return {'train': [(torch.ones(9, 2), labels)], 'evaluation': [torch.zeros(1, 2)]}",
        calibration=5,
    )
    assert len(values(dataset.calibration)) == 10
    assert values(dataset.evaluation) == [0, 0]
    assert dataset.train is not None
    assert dataset.first.labels is not None
    assert dataset.first.labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def data(): return 1 / 0", "mine.py:3: ZeroDivisionError"),
        ("def f():\n    yield torch.zeros(1)\n    raise OSError('gone')\ndef data(): return f", "mine.py:5: OSError: gone"),
        ("def data(): return 3", "gave a int: data is gone through more than once, so give a list of batches"),
        ("def data(): return iter([torch.zeros(1)])", "gave a list_iterator"),
        ("def data(): return torch.zeros(3)", "gave a Tensor"),
        ("def data(): return []", "the data gave no batch"),
        ("def data(): return [(1, 2, 3)]", r"batch 0 is a tuple of 3: give \(inputs, labels\), several inputs as a tuple"),
        ("def data(): return ['x']", "batch 0, input 0 is of kind str"),
        ("def data(): return [torch.zeros(1, dtype=torch.uint8)]", "batch 0, input 0 is uint8"),
        (
            "def data(): return [torch.zeros(1), torch.full((2, 3), float('nan'))]",
            r"batch 1, input 0 has the value NaN at \(0, 0\)",
        ),
        ("def data(): return [(torch.zeros(1), torch.zeros(2))]", "batch 0: a batch differs in its number of samples"),
        ("def data(): return {'train': [torch.zeros(1)]}", r"gave train: evaluation and calibration \(or train\) are needed"),
    ],
)
def test_what_fails_is_told_by_batch_or_line(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        values(made(tmp_path, body).evaluation)


def test_a_split_of_another_name_is_answered_with_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'eval': .*Known: calibration, evaluation, train"):
        made(tmp_path, "def data(): return {'eval': []}")
