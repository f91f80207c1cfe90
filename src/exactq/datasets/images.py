"""An image file of any kind as 8-bit pixels, as torchvision's own reader gives them: Pillow's `convert`.

So transparency is dropped (the colour beneath it counts), CMYK is converted without a profile, of several frames the first is
taken, and the orientation that a camera noted in EXIF is not applied. Sixteen-bit grey, which `convert` clips to white, is
scaled: round(v / 257).
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from exactq.datasets.leftout import UnreadableError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is read, whatever a file's suffix says. Not all that Pillow reads: its EPS starts another program."""
WIDE = ("I;16", "I;16L", "I;16B", "I;16N")
SCALED = ("PNG", "PPM")
"""Where Pillow's 32-bit mode holds 16 bits at full scale."""


def decoded(file: Path | bytes, mode: str) -> Image.Image:
    """The image in a file, or in its bytes, as `RGB` or `L`.

    Raises `UnreadableError` for what is no image, damaged, too large, without a known range, or not permitted to be read;
    `OSError` where the file itself cannot be reached.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about files that it reads all the same
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS) as image:
                return _converted(image, mode)
    except (UnreadableError, MemoryError):
        raise
    except Exception as e:  # decoders fail in many ways on bad input: OSError, SyntaxError, struct.error, IndexError …
        if isinstance(e, OSError) and e.errno is not None and not isinstance(e, PermissionError):
            raise
        raise UnreadableError(_reason(e, file)) from e


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in WIDE or (image.mode == "I" and image.format in SCALED):
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray(((values + 128) // 257).clip(0, 255).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise UnreadableError(
            f"{'32-bit' if image.mode == 'I' else 'real'} pixels, whose range nobody says: store 8 or 16 bits"
        )
    return image.convert(mode)


def _reason(error: Exception, file: Path | bytes) -> str:
    """Why an image cannot be decoded, in a few words and without its path."""
    match error:
        case PermissionError():
            return "permission denied"
        case UnidentifiedImageError():
            return "no image" if (len(file) if isinstance(file, bytes) else file.stat().st_size) else "empty file"
        case Image.DecompressionBombError():
            return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
    return (str(error).splitlines() or [""])[0] or type(error).__name__
