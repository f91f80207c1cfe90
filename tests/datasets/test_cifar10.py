"""CIFAR-10's parquet files: small ones made here, and the real ones where they are."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from exactq.datasets.catalog import load
from exactq.datasets.cifar10 import FILES, MEAN, STD
from exactq.errors import DataError


def png(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format="PNG")
    return data.getvalue()


def write(path: Path, images: list[bytes] | list[bytes | None], labels: list[int], column: str = "img") -> None:
    rows = pa.array(
        [{"bytes": image, "path": None} for image in images], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    parquet.write_table(pa.table({column: rows, "label": pa.array(labels, pa.int64())}), path)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path, pixels: np.ndarray) -> Path:
    write(tmp_path / FILES["train"], [png(image) for image in pixels], [index % 10 for index in range(12)])
    write(tmp_path / FILES["test"], [png(image) for image in pixels[:3]], [0, 1, 2])
    return tmp_path


def test_images_come_normalised_in_the_order_of_the_file(folder: Path, pixels: np.ndarray) -> None:
    dataset = load(f"cifar10:{folder}")
    (batch,) = dataset.evaluation
    expected = (pixels[:3].astype(np.float32) / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    assert torch.equal(batch.inputs[0], torch.from_numpy(expected).permute(0, 3, 1, 2))
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1, 2]
    assert dataset.classes == 10


def test_decoded_images_are_kept_and_stay_the_same(folder: Path) -> None:
    first, second = (load(f"cifar10:{folder}", calibration=4, batch_size=2) for _ in range(2))
    once, again = (torch.cat([batch.inputs[0] for batch in dataset.calibration]) for dataset in (first, second))
    assert once.shape == (4, 3, 32, 32)
    assert torch.equal(once, again)


def test_the_folder_is_found_through_the_environment(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "data"
    base.mkdir()
    (base / "cifar10").symlink_to(folder)
    monkeypatch.setenv("EXACTQ_DATA", str(base))
    assert load("cifar10").name == "cifar10"


def test_what_is_missing_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DataError, match=r"train-00000-of-00001.parquet is missing. Put the hub's files .* cifar10:DIR or EXACTQ_DATA"
    ):
        load(f"cifar10:{tmp_path}")
    monkeypatch.delenv("EXACTQ_DATA", raising=False)
    with pytest.raises(DataError, match=r"`cifar10` is not here: set EXACTQ_DATA .* or write cifar10:DIR"):
        load("cifar10")


def test_a_truncated_file_is_told(folder: Path) -> None:
    path = folder / FILES["test"]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"test-00000-of-00001.parquet cannot be read as CIFAR-10"):
        load(f"cifar10:{folder}")


def test_another_schema_is_told(folder: Path, pixels: np.ndarray) -> None:
    write(folder / FILES["test"], [png(pixels[0])], [0], column="image")
    with pytest.raises(DataError, match="cannot be read as CIFAR-10"):
        load(f"cifar10:{folder}")


@pytest.mark.parametrize(("image", "why"), [(b"", "empty file"), (b"no image", "no image"), (None, "no bytes")])
def test_an_image_that_cannot_be_decoded_is_left_out_and_told(
    folder: Path, pixels: np.ndarray, image: bytes | None, why: str
) -> None:
    write(folder / FILES["test"], [png(pixels[0]), image, png(pixels[1])], [0, 1, 1])
    dataset = load(f"cifar10:{folder}", batch_size=1)
    for _ in range(2):
        assert [int(label) for batch in dataset.evaluation if batch.labels is not None for label in batch.labels] == [0, 1]
    list(dataset.train or ())
    assert dataset.remarks() == [
        f"1 of 15 images could not be decoded and was left out: {FILES['test']}: image 1 ({why})",
    ]
    assert load(f"cifar10:{folder}").remarks() == []  # what another load met is not told again
    write(folder / FILES["test"], [png(pixels[0]), image, image], [0, 1, 1])
    with pytest.raises(DataError, match=r"no image of the class '1' can be decoded: .* image 1 \(.*\), .* image 2 \("):
        list(load(f"cifar10:{folder}").evaluation)


def test_an_image_of_another_size_is_an_error_and_one_of_another_mode_is_converted(folder: Path, pixels: np.ndarray) -> None:
    write(folder / FILES["test"], [png(pixels[0]), png(np.zeros((8, 9, 3), "u1"))], [0, 1])
    with pytest.raises(DataError, match="image 1 is 9×8: CIFAR-10 has 32×32; imagefolder:DIR brings"):
        list(load(f"cifar10:{folder}").evaluation)
    grey = pixels[0, :, :, 0]
    write(folder / FILES["test"], [png(grey), png(np.dstack([grey] * 3))], [0, 1])
    (batch,) = load(f"cifar10:{folder}").evaluation
    assert torch.equal(batch.inputs[0][0], batch.inputs[0][1])


def test_a_label_that_is_none_is_told_by_its_index(folder: Path, pixels: np.ndarray) -> None:
    write(folder / FILES["test"], [png(pixels[0])] * 2, [0, 10])
    with pytest.raises(DataError, match=r"gives image 1 the label 10: CIFAR-10 has 0..9"):
        load(f"cifar10:{folder}")


def test_the_real_files_calibrate_with_512_and_evaluate_with_ten_thousand(data: Path) -> None:
    if not (data / "cifar10").is_dir():
        pytest.skip("cifar10 is not in EXACTQ_DATA")
    dataset = load("cifar10")
    assert sum(len(batch) for batch in dataset.calibration) == 512
    assert getattr(dataset.evaluation, "samples", 0) == 10_000
    labels = torch.cat([batch.labels for batch in dataset.calibration if batch.labels is not None])
    assert labels.bincount(minlength=10).min() > 20  # chosen over the whole file, whatever its order
