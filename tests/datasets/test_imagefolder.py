"""Images in folders: their division, their size, and what is wrong with them."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from exactq.datasets import imagefolder as module
from exactq.datasets.catalog import load
from exactq.datasets.splits import Dataset, Indexed
from exactq.errors import DataError
from exactq.sources.resolve import resolve

SHAPES = ((3, 32, 32),)


def image(path: Path, value: int, size: tuple[int, int] = (50, 40), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, value, value)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images of each of two classes, all together; every image has a value of its own."""
    for label, name in enumerate(("cat", "dog")):
        for number in range(10):
            image(tmp_path / name / f"{number}.png", 100 * label + 10 * number)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / ".hidden.png").write_text("no image")
    (tmp_path / ".git").mkdir()
    return tmp_path


def values(dataset: Dataset, split: str) -> list[tuple[int, int]]:
    """(pixel, label) of each sample, in order."""
    found = []
    for batch in getattr(dataset, split):
        assert batch.labels is not None
        pixels = (batch.inputs[0][:, 0, 0, 0] * 0.229 + 0.485) * 255
        found += list(zip(pixels.round().int().tolist(), batch.labels.tolist(), strict=True))
    return found


def test_a_fifth_of_each_class_is_held_back_by_the_seed(folder: Path) -> None:
    first, second, other = (load(f"imagefolder:{folder}", seed=seed, shapes=SHAPES) for seed in (1, 1, 2))
    assert values(first, "evaluation") == values(second, "evaluation") != values(other, "evaluation")
    assert values(first, "calibration") == values(second, "calibration")
    held, seen = values(first, "evaluation"), values(first, "train")
    assert [label for _, label in held] == [0, 0, 1, 1]
    assert sorted(held + seen) == [(100 * label + 10 * number, label) for label in (0, 1) for number in range(10)]
    assert first.classes == 2


@pytest.mark.parametrize("held", module.HELD)
def test_images_that_somebody_divided_stay_divided(held: str, tmp_path: Path) -> None:
    for part, value in (("train", 10), (held, 20)):
        image(tmp_path / part / "a" / "deeper" / "1.jpg", value)
        image(tmp_path / part / "b" / "1.PNG", value + 5)
    dataset = load(f"imagefolder:{tmp_path}", shapes=SHAPES)
    assert values(dataset, "train") == [(10, 0), (15, 1)]
    assert values(dataset, "evaluation") == [(20, 0), (25, 1)]


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_lone_part_is_divided_and_a_lone_image_does_both(part: str, tmp_path: Path) -> None:
    image(tmp_path / part / "a" / "1.png", 7)
    dataset = load(f"imagefolder:{tmp_path}", shapes=SHAPES)
    assert values(dataset, "train") == values(dataset, "evaluation") == [(7, 0)]


def test_the_centre_is_cut_out_and_normalised(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 36, 3), dtype=np.uint8)  # 32 · 256 / 224 = 36.57: no resizing
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "1.png")
    (batch,) = load(f"imagefolder:{tmp_path}", shapes=SHAPES).evaluation
    cut = pixels[2:34, 2:34].astype(np.float32) / np.float32(255)
    expected = (cut - np.float32((0.485, 0.456, 0.406))) / np.float32((0.229, 0.224, 0.225))
    assert torch.equal(batch.inputs[0][0], torch.from_numpy(expected).permute(2, 0, 1))


@given(*[st.integers(1, 3000)] * 4)
def test_the_resized_image_covers_the_size_and_keeps_its_proportions(w: int, h: int, width: int, height: int) -> None:
    across, down = module._covering((w, h), (width, height))
    wanted = [Fraction(side * 256 // 224) for side in (width, height)]
    scale = max(wanted[0] / w, wanted[1] / h)
    assert (across, down) == (int(w * scale), int(h * scale))
    assert across >= width
    assert down >= height


def test_one_channel_is_grey_and_no_shape_means_imagenets(tmp_path: Path) -> None:
    image(tmp_path / "a" / "1.png", 128, mode="L")
    (grey,) = load(f"imagefolder:{tmp_path}", shapes=((1, 8, 9),)).evaluation
    assert grey.inputs[0].shape == (1, 1, 8, 9)
    assert torch.equal(grey.inputs[0].unique(), torch.tensor([(torch.tensor(128 / 255) - 0.449) / 0.226]))
    assert load(f"imagefolder:{tmp_path}").shapes == ((3, 224, 224),)


def test_images_are_decoded_when_their_batch_is_asked_for_and_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load(f"imagefolder:{folder}", batch_size=2, calibration=4, shapes=SHAPES)
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or real(path))
    assert isinstance(dataset.train, Indexed)
    batches = iter(dataset.train)
    assert not opened
    next(batches)
    assert len(opened) == 2
    next(iter(dataset.train))
    assert opened[:2] == opened[2:]


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_an_image_that_cannot_be_decoded_is_named(damage: str, tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(data, "PNG")
    bad = {"truncated": data.getvalue()[:2000], "text": b"no image", "empty": b""}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.png").write_bytes(bad[damage])
    with pytest.raises(DataError, match=r"broken.png cannot be decoded: \w"):
        load(f"imagefolder:{tmp_path}", shapes=SHAPES)


def test_folders_that_do_not_fit_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*none: imagefolder:DIR wants"):
        load(f"imagefolder:{tmp_path / 'none'}")
    with pytest.raises(DataError, match="has no folder in it"):
        load(f"imagefolder:{tmp_path}")
    (tmp_path / "train" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="a has no image"):
        load(f"imagefolder:{tmp_path}")
    image(tmp_path / "train" / "a" / "1.png", 0)
    image(tmp_path / "val" / "b" / "1.png", 0)
    with pytest.raises(DataError, match="val has the class 'b', which the training images do not have"):
        load(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize("shapes", [((16,),), ((3, 8, 8), (3, 8, 8)), ((4, 8, 8),)])
def test_a_model_that_takes_no_image_is_told(shapes: tuple[tuple[int, ...], ...], folder: Path) -> None:
    with pytest.raises(DataError, match="gives one image of 3 channels or 1, and the model takes"):
        load(f"imagefolder:{folder}", shapes=shapes)


def test_resolve_brings_images_to_the_models_size_or_to_the_one_asked_for(folder: Path) -> None:
    assert resolve("resnet20", random_weights=True, data=f"imagefolder:{folder}").example[0].shape == (2, 3, 32, 32)
    source = resolve("resnet20", random_weights=True, data=f"imagefolder:{folder}", input_shape="1,3,16,24")
    assert source.example[0].shape == (2, 3, 16, 24)
    assert source.module(*source.example).shape == (2, 2)
