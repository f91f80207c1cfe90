"""Images in folders: their division, their size, and what is wrong with them."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Iterator
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
    monkeypatch.setattr(Image, "open", lambda path, **options: opened.append(path) or real(path, **options))
    assert isinstance(dataset.train, Indexed)
    batches = iter(dataset.train)
    assert not opened
    next(batches)
    assert len(opened) == 2
    next(iter(dataset.train))
    assert opened[:2] == opened[2:]


def broken(path: Path) -> None:
    """A JPEG of which the second half is missing."""
    image(path, 0)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, "JPEG")
    path.write_bytes(data.getvalue()[: len(data.getvalue()) // 2])


@pytest.mark.parametrize("parts", [(".",), ("train", "val")])
def test_an_image_that_cannot_be_decoded_is_left_out_wherever_it_lies_named_and_counted_once(
    parts: tuple[str, ...], folder: Path
) -> None:
    if len(parts) > 1:
        for name in ("cat", "dog"):
            for part in parts:
                shutil.copytree(folder / name, folder / part / name)
            shutil.rmtree(folder / name)
    whole = load(f"imagefolder:{folder}", shapes=SHAPES)
    assert whole.remarks() == []
    wanted = {split: values(whole, split) for split in ("calibration", "evaluation", "train")}
    bad = {"cat/0.png": 0, "cat/1.png": 10, "dog/3.png": 130, "dog/9.png": 190}
    for part in parts:
        for name in bad:
            broken(folder / part / name)
    dataset = load(f"imagefolder:{folder}", shapes=SHAPES, batch_size=2)
    for _ in range(2):
        for split, all_of_it in wanted.items():
            assert values(dataset, split) == [pair for pair in all_of_it if pair[0] not in bad.values()]
    total, count = 20 * len(parts), 4 * len(parts)
    first = "cat/0.png" if len(parts) == 1 else "train/cat/0.png"
    (said,) = dataset.remarks()
    assert said.startswith(
        f"{count} of {total} images could not be decoded and were left out: {first} (image file is truncated ("
    )
    assert said.endswith(f" and {count - 3} more")


def test_the_first_image_to_calibrate_with_is_one_that_can_be_decoded(folder: Path) -> None:
    for number in range(9):
        broken(folder / "cat" / f"{number}.png")
        broken(folder / "dog" / f"{number}.png")
    for seed in range(3):
        assert len(load(f"imagefolder:{folder}", shapes=SHAPES, calibration=1, seed=seed).first) == 1


@pytest.mark.parametrize(("data", "why"), [(b"no image", "no image"), (b"", "empty file")])
def test_a_class_without_an_image_that_can_be_decoded_is_an_error(folder: Path, data: bytes, why: str) -> None:
    for number in range(10):
        (folder / "dog" / f"{number}.png").write_bytes(data)
    said = (
        rf"no image of the class 'dog' can be decoded: dog/0.png \({why}\), dog/1.png .*, dog/2.png .* and 7 more; each class"
    )
    with pytest.raises(DataError, match=said):
        load(f"imagefolder:{folder}", shapes=SHAPES)


def test_evaluation_images_that_all_cannot_be_decoded_are_an_error(folder: Path) -> None:
    dataset = load(f"imagefolder:{folder}", shapes=SHAPES, calibration=1)
    assert isinstance(dataset.evaluation, Indexed)
    held = [pixel for pixel, _ in values(dataset, "evaluation")]
    for pixel in held:
        broken(folder / ("dog" if pixel >= 100 else "cat") / f"{pixel % 100 // 10}.png")
    with pytest.raises(DataError, match=r"none of 4 samples can be read: .*; give more of them, or others"):
        list(load(f"imagefolder:{folder}", shapes=SHAPES).evaluation)


def test_images_that_vanish_while_they_are_read_end_the_run(folder: Path) -> None:
    dataset = load(f"imagefolder:{folder}", shapes=SHAPES)
    shutil.rmtree(folder / "cat")
    with pytest.raises(
        DataError, match=r"cat/\d.png cannot be read: No such file or directory; it was there when the run began"
    ):
        list(dataset.evaluation)


def test_a_file_that_may_not_be_read_is_left_out_and_a_failing_disk_ends_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, number = Image.open, errno.EACCES

    def refusing(path: Path, **options: object) -> Image.Image:
        if path == folder / "cat" / "3.png":
            raise OSError(number, os.strerror(number))
        return real(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "open", refusing)
    dataset = load(f"imagefolder:{folder}", shapes=SHAPES)
    list(dataset.train or ()), list(dataset.evaluation)
    assert dataset.remarks() == ["1 of 20 images could not be decoded and was left out: cat/3.png (permission denied)"]
    number = errno.EIO
    take = module._split(module._album(folder, folder, ["cat", "dog"]), SHAPES[0]).take
    with pytest.raises(DataError, match=r"cat/3.png cannot be read: Input/output error"):
        take(torch.tensor([3]))


def test_links_are_followed_in_no_circle_and_to_nothing_are_told(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    image(elsewhere / "far.png", 55)
    (folder / "cat" / "more").symlink_to(elsewhere)
    (folder / "cat" / "up").symlink_to(folder)
    (folder / "cat" / "self").symlink_to("self")
    (folder / "cat" / "gone.png").symlink_to("nowhere.png")
    (folder / "cat" / "a folder.png").mkdir()
    os.mkfifo(folder / "cat" / "pipe.png")  # opening it would wait for ever
    dataset = load(f"imagefolder:{folder}", shapes=SHAPES)
    pixels = [pixel for split in ("train", "evaluation") for pixel, label in values(dataset, split) if label == 0]
    assert dataset.remarks() == ["1 of 32 images could not be decoded and was left out: cat/gone.png (a link to nothing)"]
    assert sorted(pixels) == sorted([*range(0, 100, 10), 55, *range(100, 200, 10)])


def test_a_folder_that_may_not_be_read_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.iterdir

    def refusing(path: Path) -> Iterator[Path]:
        if path.name == "dog":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path)

    monkeypatch.setattr(Path, "iterdir", refusing)
    with pytest.raises(DataError, match="dog cannot be read: Permission denied"):
        load(f"imagefolder:{folder}", shapes=SHAPES)


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (1, 1), (3, 2), (700, 2)])
def test_images_of_any_size_and_proportions_are_brought_to_the_models(size: tuple[int, int], tmp_path: Path) -> None:
    image(tmp_path / "a" / "1.png", 77, size=size)
    dataset = load(f"imagefolder:{tmp_path}")
    assert dataset.shapes == ((3, 224, 224),)
    assert {pixel for pixel, _ in values(dataset, "evaluation")} == {77}
    assert dataset.first.inputs[0][:, 0].unique().numel() == 1


def test_extreme_proportions_give_the_same_but_for_a_level_or_two(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (900, 30, 3), dtype=np.uint8)
    whole = np.array(module._centre(Image.fromarray(pixels), (64, 48))).astype(int)
    monkeypatch.setattr(module, "MOST", 0)
    cut = np.array(module._centre(Image.fromarray(pixels), (64, 48))).astype(int)
    assert np.abs(whole - cut).max() <= 2  # Pillow takes the box in float32


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
