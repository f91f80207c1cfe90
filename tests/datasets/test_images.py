"""One image of any kind, mode and damage: its 8-bit pixels, or why there are none."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exactq.datasets.images import FORMATS, decoded
from exactq.datasets.leftout import UnreadableError

NOISE = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def stored(image: Image.Image, kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)  # type: ignore[arg-type]
    return data.getvalue()


def pixels(data: bytes, mode: str = "RGB") -> list[int] | list[list[int]]:
    """Its pixels, one after another."""
    image = np.array(decoded(data, mode))
    return image.reshape(-1, *image.shape[2:]).tolist()


def test_sixteen_bits_are_scaled_for_each_value_as_a_fraction_rounds() -> None:
    values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    expected = [round(v / 257) for v in range(2**16)]  # no ties: 257 is odd
    for kind in ("PNG", "TIFF"):
        assert pixels(stored(Image.fromarray(values), kind), "L") == expected
    big = Image.frombytes("I;16B", (256, 256), values.astype(">u2").tobytes())
    assert pixels(stored(big, "TIFF"), "L") == expected
    assert pixels(b"P5 256 256 65535\n" + values.astype(">u2").tobytes(), "L") == expected
    assert pixels(stored(Image.fromarray(values[-1:]), "PNG")) == [[v] * 3 for v in expected[-256:]]


@pytest.mark.parametrize(("dtype", "said"), [("i4", "32-bit pixels, whose range nobody says"), ("f4", "real pixels")])
def test_pixels_without_a_known_range_are_not_guessed(dtype: str, said: str) -> None:
    with pytest.raises(UnreadableError, match=said):
        decoded(stored(Image.fromarray(np.ones((2, 2), dtype)), "TIFF"), "L")


def test_what_lies_under_transparency_counts_as_in_torchvisions_reader() -> None:
    colour = (10, 200, 30)
    for image in (Image.new("RGBA", (1, 1), (*colour, 0)), Image.new("RGBA", (1, 1), (*colour, 128))):
        assert pixels(stored(image, "PNG")) == [list(colour)]
    assert pixels(stored(Image.new("LA", (1, 1), (70, 0)), "PNG"), "L") == [70]
    palette = Image.new("P", (1, 1), 1)
    palette.putpalette([0, 0, 0, *colour])
    assert pixels(stored(palette, "PNG")) == [list(colour)]
    assert pixels(stored(palette, "PNG", transparency=b"\xff\x00")) == [list(colour)]  # Pillow would warn


def test_other_modes_are_converted() -> None:
    assert pixels(stored(Image.new("1", (2, 1), 1), "PNG"), "L") == [255, 255]
    assert pixels(stored(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF")) == [[255, 0, 0]]
    assert pixels(stored(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"), "L") == [76]
    assert pixels(stored(Image.fromarray(NOISE), "PNG"), "L") == list(Image.fromarray(NOISE).convert("L").tobytes())
    assert pixels(stored(Image.new("L", (1, 1), 9), "PNG")) == [[9, 9, 9]]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF"])
def test_the_first_of_several_frames_counts(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), (value, value, value)) for value in (0, 255)]
    data = stored(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.array(decoded(data, "L")).max() == 0


def test_the_orientation_of_the_camera_is_not_applied() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    assert decoded(stored(Image.fromarray(NOISE), "JPEG", exif=turned), "RGB").size == (5, 6)


def test_a_suffix_means_nothing_and_only_named_formats_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(stored(Image.fromarray(NOISE), "PNG"))
    assert np.array_equal(np.array(decoded(tmp_path / "a.jpg", "RGB")), NOISE)
    assert set(FORMATS) <= set(Image.registered_extensions().values())
    script = stored(Image.fromarray(NOISE), "EPS")
    with pytest.raises(UnreadableError, match="no image"):
        decoded(script, "RGB")


def test_damage_is_told_in_a_few_words_without_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        data = stored(whole, kind)
        (tmp_path / "x").write_bytes(data[: len(data) // 2])
        with pytest.raises(UnreadableError, match=r"^.{4,120}$") as raised:
            decoded(tmp_path / "x", "RGB")
        assert str(tmp_path) not in str(raised.value)
    for data, said in ((b"", "empty file"), (b"<html>", "no image")):
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(UnreadableError, match=said):
            decoded(tmp_path / "x", "RGB")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    decoded(stored(whole, "PNG"), "RGB")  # 4,096 pixels: Pillow warns, and reads it
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(UnreadableError, match="more than 4,000 pixels"):
        decoded(stored(whole, "PNG"), "RGB")
    with pytest.raises(FileNotFoundError):
        decoded(tmp_path / "none", "RGB")


def test_any_damage_of_a_byte_gives_pixels_or_a_reason() -> None:
    generator = np.random.default_rng(2)
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"):
        data = stored(Image.fromarray(NOISE), kind)
        for _ in range(60):
            bad = bytearray(data)
            bad[generator.integers(len(bad))] = generator.integers(256)
            try:
                assert decoded(bytes(bad), "RGB").mode == "RGB"
            except UnreadableError as e:
                assert str(e)  # noqa: PT017 (either is right)
