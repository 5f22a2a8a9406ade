"""PNG pictures whose colours mean something: the two layouts of benchmark data sets need them."""

from pathlib import Path

import numpy as np
from jaxtyping import Integer, Shaped

from spoco_zoo.errors import ImageError
from spoco_zoo.images import read_image


def load_rgb(path: Path) -> Shaped[np.ndarray, "3 y x"]:
    """Read a picture in colour; alpha, which is full throughout, is left out.

    Raises:
        ImageError: It is unreadable, or not in colour.
    """
    pixels = read_image(path, 2).pixels
    if pixels.ndim != 3 or len(pixels) not in (3, 4):
        raise ImageError(f"{path}: has {len(pixels)} channels: expected red, green and blue")
    return pixels[:3]


def load_numbers(path: Path) -> Integer[np.ndarray, "y x"]:
    """Read ids out of a PNG: indices of a palette, grey values, or packed colours.

    A colour becomes red * 65536 + green * 256 + blue, so that black stays 0 and two colours
    never become one id.

    Raises:
        ImageError: The picture is unreadable.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            is_color = picture.mode in ("RGB", "RGBA")
            values = np.asarray(picture.convert("L") if picture.mode == "LA" else picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(
            f"{path}: cannot be read as PNG ({type(error).__name__}): copy it again"
        ) from error
    if not is_color:
        return values.astype(np.uint32)
    # widened first: in 8 bits the products would wrap around
    red, green, blue = np.moveaxis(values[..., :3].astype(np.uint32), -1, 0)
    return np.asarray((red << 16) | (green << 8) | blue)


def picture_size(path: Path) -> tuple[int, int]:
    """Read the height and width of a picture from its head.

    Raises:
        ImageError: The picture is unreadable.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(
            f"{path}: cannot be read as PNG ({type(error).__name__}): copy it again"
        ) from error
