"""A user's arrays."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exactq.datasets.catalog import load
from exactq.datasets.splits import Dataset
from exactq.errors import DataError


def saved(folder: Path, *positional: Any, inputs: tuple[str, ...] | None = None, **named: Any) -> Dataset:
    np.savez(folder / "mine.npz", *positional, **named)
    return load(f"npz:{folder / 'mine.npz'}", inputs=inputs)


def samples(dataset: Dataset, which: str, position: int = 0) -> list[float]:
    return [float(v) for batch in getattr(dataset, which) for v in batch.inputs[position].flatten()]


def test_one_half_calibrates_and_trains_and_the_other_evaluates(tmp_path: Path) -> None:
    dataset = saved(tmp_path, x=np.arange(11.0), labels=np.arange(11) % 3)
    seen, held = samples(dataset, "calibration"), samples(dataset, "evaluation")
    assert (len(seen), len(held)) == (5, 6)
    assert sorted(seen + held) == list(range(11))
    assert samples(dataset, "train") == seen
    assert dataset.classes == 3
    assert all(batch.labels is not None and bool((batch.labels == batch.inputs[0] % 3).all()) for batch in dataset.evaluation)


def test_a_lone_sample_does_both(tmp_path: Path) -> None:
    dataset = saved(tmp_path, np.array([[7.0]]))
    assert samples(dataset, "calibration") == samples(dataset, "evaluation") == [7]
    assert dataset.train is None
    assert dataset.classes is None


def test_arrays_come_in_the_order_of_the_models_inputs(tmp_path: Path) -> None:
    dataset = saved(tmp_path, b=np.full(2, 2.0), a=np.full(2, 1.0), inputs=("a", "b"))
    assert (samples(dataset, "evaluation", 0), samples(dataset, "evaluation", 1)) == ([1], [2])


def test_arrays_come_by_position(tmp_path: Path) -> None:
    dataset = saved(tmp_path, *[np.full(2, float(i)) for i in range(11)], inputs=("a", "b"))
    assert [samples(dataset, "evaluation", i) for i in range(11)] == [[i] for i in range(11)]


def test_optional_inputs_may_be_left_out(tmp_path: Path) -> None:
    dataset = saved(tmp_path, b=np.full(2, 2.0), a=np.full(2, 1.0), inputs=("a", "b", "mask"))
    assert samples(dataset, "evaluation", 1) == [2]


def test_labels_that_are_reals_are_no_classes(tmp_path: Path) -> None:
    dataset = saved(tmp_path, x=np.zeros((4, 2)), labels=np.zeros(4))
    assert dataset.classes is None
    assert dataset.first.labels is not None
    assert dataset.first.labels.dtype == torch.float32


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.array([[0.0, 1.0], [np.nan, 1.0]])}, r"mine.npz: array 'x' has the value NaN at \(1, 0\)"),
        ({"x": np.array([np.inf])}, r"array 'x' has the value inf at \(0,\)"),
        ({"x": np.zeros((0, 3))}, "array 'x' is empty"),
        ({"x": np.zeros(3, "u1")}, "array 'x' is uint8: models take float32 or int64"),
        ({"x": np.zeros(3), "labels": np.zeros(2)}, "differ in their number of samples: 'x' 3, 'labels' 2"),
        ({"x": np.zeros(3), "labels": np.array(["a"] * 3)}, "array 'labels' is of kind <U1"),
        ({"x": np.zeros(3), "y": np.zeros(3)}, r"the arrays x, y: name them like the model's inputs \(a, b\) or arr_0, arr_1"),
        ({"labels": np.zeros(3)}, "holds no input array"),
        ({"x": np.array([{}], dtype=object)}, "pickled objects, which can carry code: refused, nothing was run"),
    ],
)
def test_arrays_that_do_not_fit_are_told(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        saved(tmp_path, inputs=("a", "b"), **arrays)


class Evil:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_a_pickle_in_the_file_is_refused_and_nothing_is_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing was run"):
        saved(tmp_path, x=np.array([Evil(tmp_path / "ran")], dtype=object))
    (tmp_path / "mine.npz").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(DataError, match=r"holds pickled objects, .* nothing was run"):
        load(f"npz:{tmp_path / 'mine.npz'}")
    assert not (tmp_path / "ran").exists()


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    with pytest.raises(DataError, match=r"there is no file .*mine.npz"):
        load(f"npz:{path}")
    np.savez(path, x=np.random.default_rng(0).normal(size=1000))
    whole = path.read_bytes()
    for text in (b"PK\x03", b"x,y\n1,2\n"):
        path.write_bytes(text)
        with pytest.raises(DataError, match=r"mine.npz is no .npz file: it is damaged, or of another kind"):
            load(f"npz:{path}")
    for size in (0, 10, 100, 4000, len(whole) - 5):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"mine.npz"):
            load(f"npz:{path}")
    path.write_bytes(whole.replace(whole[2000:2008], b"\0" * 8))
    with pytest.raises(DataError, match=r"cannot be read as .npz"):  # the archive's checksum
        load(f"npz:{path}")
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(DataError, match="is a single array"):
        load(f"npz:{tmp_path / 'single.npy'}")
