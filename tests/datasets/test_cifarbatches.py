"""CIFAR-10 as its authors publish it: what the files hold is read, what a pickle would run is not."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exactq.datasets.catalog import load
from exactq.datasets.cifarbatches import PIXELS, TEST, TRAIN, read_batches
from exactq.errors import DataError

IMAGES = 4


def part(number: int) -> tuple[np.ndarray, list[int]]:
    return np.random.default_rng(number).integers(0, 256, (IMAGES, PIXELS), dtype=np.uint8), [number, 9, 0, 3]


def as_python2_wrote_it(pixels: np.ndarray, labels: list[int]) -> bytes:
    """Protocol 2 with byte strings, as the authors' own files: Python 3 has no way to write them."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + len(value).to_bytes(4, "little") + value

    def number(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + value.to_bytes(2, "little")

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03(K\x01"
        + number(len(pixels))
        + number(PIXELS)
        + b"\x86cnumpy\ndtype\nq\x04U\x02u1K\x00K\x01\x87Rq\x05(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + text(pixels.tobytes())
        + b"tb"
    )
    listed = b"](" + b"".join(number(label) for label in labels) + b"e"
    return (
        b"\x80\x02}q\x00("
        + text(b"batch_label")
        + text(b"training batch 1 of 5")
        + text(b"data")
        + array
        + text(b"labels")
        + listed
        + b"u."
    )


def modern(protocol: int) -> Callable[[np.ndarray, list[int]], bytes]:
    return lambda pixels, labels: pickle.dumps({b"data": pixels, b"labels": labels, b"filenames": [b"a.png"]}, protocol)


def records(pixels: np.ndarray, labels: list[int]) -> bytes:
    return b"".join(bytes([label]) + image.tobytes() for image, label in zip(pixels, labels, strict=True))


WRITERS = {"python2": as_python2_wrote_it, "protocol 2": modern(2), "protocol 3": modern(3), "protocol 4": modern(4)}


def written(folder: Path, writer: Callable[[np.ndarray, list[int]], bytes], suffix: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate((*TRAIN, *TEST)):
        (folder / f"{name}{suffix}").write_bytes(writer(*part(number)))


@pytest.mark.parametrize("form", [*WRITERS, "binary"])
@pytest.mark.parametrize("where", ["folder of the archive", "here"])
def test_all_forms_give_the_same_images(form: str, where: str, tmp_path: Path) -> None:
    name = "cifar-10-batches-bin" if form == "binary" else "cifar-10-batches-py"
    folder = tmp_path if where == "here" else tmp_path / name
    written(folder, WRITERS.get(form, records), ".bin" * (form == "binary"))
    dataset = load(f"cifar10:{tmp_path}", calibration=8)
    assert getattr(dataset.train, "samples", 0) == 5 * IMAGES
    (batch,) = dataset.evaluation
    pixels, labels = part(5)
    assert batch.labels is not None
    assert batch.labels.tolist() == labels
    planes = torch.from_numpy(pixels.reshape(IMAGES, 3, 32, 32)).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert torch.equal(batch.inputs[0], (planes - mean) / std)


def test_numpys_own_reader_agrees(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(as_python2_wrote_it(*part(1)))
    with (tmp_path / "b").open("rb") as stream:
        trusted: dict[bytes, Any] = pickle.load(stream, encoding="bytes")  # written above
    pixels, labels = read_batches((tmp_path / "b",))
    assert np.array_equal(pixels.permute(0, 3, 1, 2).reshape(IMAGES, PIXELS), trusted[b"data"])
    assert labels.tolist() == trusted[b"labels"]


class Malicious:
    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call, self.arguments


def touch(path: str) -> None:
    Path(path).touch()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("call", [touch, eval, exec, getattr, np.load, np.frombuffer, __import__])
def test_code_in_a_pickle_is_refused_by_its_name_and_not_run(
    call: Callable[..., object], protocol: int, tmp_path: Path
) -> None:
    trace = tmp_path / "ran"
    argument = str(trace) if call is touch else f"open({str(trace)!r}, 'w')"
    (tmp_path / "b").write_bytes(pickle.dumps({b"data": Malicious(call, argument)}, protocol))
    with pytest.raises(DataError, match=rf"names `[\w.]*{call.__name__}`, which is code .* refused, nothing was run"):
        read_batches((tmp_path / "b",))
    assert not trace.exists()


@pytest.mark.parametrize(
    "stream",
    [
        b"\x80\x02cnumpy\ndtype\n}X\x0c\x00\x00\x00__setstate__cnumpy\nndarray\nsb.",  # a state for the class itself
        b"\x80\x02cnumpy\nndarray\n(N}X\x08\x00\x00\x00__init__Nstb.",
        b"\x80\x02\x82\x01.",  # an extension's code
        b"\x80\x02X\x01\x00\x00\x00aQ.",  # an object kept elsewhere
        b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tostring\x93.",
    ],
)
def test_what_else_a_pickle_can_do_changes_nothing(stream: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(stream)
    (tmp_path / "good").write_bytes(as_python2_wrote_it(*part(1)))
    with pytest.raises(DataError):
        read_batches((tmp_path / "bad",))
    assert read_batches((tmp_path / "good",))[1].tolist() == part(1)[1]


PIX, LAB = part(0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pickle.dumps([1, 2]), "holds a list: a batch of CIFAR-10 is a dict"),
        (pickle.dumps({b"labels": LAB}), r"has no uint8 array `data` \(n, 3072\)"),
        (pickle.dumps({b"data": PIX.astype(np.int16), b"labels": LAB}, 2), "no uint8 array"),
        (pickle.dumps({b"data": PIX[:, :-1].copy(), b"labels": LAB}, 2), "no uint8 array"),
        (pickle.dumps({b"data": PIX.astype(object), b"labels": LAB}, 2), "no uint8 array"),
        (pickle.dumps({b"data": PIX, b"labels": "0930"}, 2), "no list of numbers `labels`"),
        (pickle.dumps({b"data": PIX, b"labels": LAB[1:]}, 2), "has 4 images and 3 labels"),
        (pickle.dumps({b"data": PIX, b"labels": LAB}, 2)[:-20], "damaged or incomplete"),
        (b"", "damaged or incomplete"),
        (b"\x00" * 100, "damaged or incomplete"),
    ],
)
def test_a_file_that_is_none_is_told(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_batches((tmp_path / "b",))


def test_records_labels_and_files_that_are_wrong_are_told(tmp_path: Path) -> None:
    (tmp_path / "b.bin").write_bytes(records(PIX, LAB)[:-1])
    with pytest.raises(DataError, match=r"b.bin has 12,291 bytes: CIFAR-10 has 3,073 for each image"):
        read_batches((tmp_path / "b.bin",))
    written(tmp_path, lambda pixels, labels: records(pixels, [1, 2, 10, 0]), ".bin")
    with pytest.raises(DataError, match=r"gives image 2 the label 10: CIFAR-10 has 0..9"):
        load(f"cifar10:{tmp_path}")
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"`cifar10` is incomplete: .*data_batch_3.bin is missing"):
        load(f"cifar10:{tmp_path}")
