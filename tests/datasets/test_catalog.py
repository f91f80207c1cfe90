"""Data by name, and the contract of the whole table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from exactq.datasets.catalog import LOADERS, load
from exactq.datasets.splits import Indexed
from exactq.errors import UsageError


@pytest.mark.parametrize("name", LOADERS)
def test_each_kind_of_data_gives_the_same_batches_for_the_same_seed(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if name == "cifar10" and not (request.getfixturevalue("data") / "cifar10").is_dir():
        pytest.skip("cifar10 is not in EXACTQ_DATA")
    np.savez(tmp_path / "mine.npz", x=np.arange(40.0).reshape(20, 2))
    for number in range(20):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.new("L", (8, 8), number).save(tmp_path / "a" / f"{number}.png")
    argument = {"npz": tmp_path / "mine.npz", "noise": "1,2", "imagefolder": tmp_path}.get(name)
    spec = name if argument is None else f"{name}:{argument}"
    first, second = (load(spec, calibration=9, batch_size=4, seed=5) for _ in range(2))
    assert isinstance(first.calibration, Indexed)
    assert [len(batch) for batch in first.calibration] == [4, 4, 1]
    pairs = zip(first.calibration, second.calibration, strict=True)
    assert all(torch.equal(a.inputs[0], b.inputs[0]) for a, b in pairs)
    assert first.shapes == tuple(tuple(x.shape[1:]) for x in next(iter(first.evaluation)).inputs)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            "digts",
            r"unknown data 'digts': did you mean 'digits'\? Known: cifar10\[:DIR\], digits, file.py:factory, imagefolder:DIR",
        ),
        ("digits:all", "data 'digits:all' is not complete or too much: write digits"),
        ("npz", "write npz:FILE"),
        ("npz:", "write npz:FILE"),
        ("cifar10:", r"write cifar10\[:DIR\]"),
        ("noise", "write noise:SHAPE"),
        ("", "unknown data ''"),
    ],
)
def test_a_bad_name_is_answered(spec: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load(spec)


def test_bad_numbers_are_told() -> None:
    with pytest.raises(UsageError, match="0 calibration samples are asked for: 1 or more"):
        load("digits", calibration=0)
    with pytest.raises(UsageError, match="a batch size of 0 is none"):
        load("digits", batch_size=0)
