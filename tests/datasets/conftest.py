"""Made-up data in each layout."""

import numpy as np
import pytest
import tifffile
from PIL import Image


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def write_png():
    def write(path, pixels, palette=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(np.asarray(pixels))
        if palette is not None:
            picture.putpalette(palette)
        picture.save(path)

    return write


@pytest.fixture
def write_tiff():
    def write(path, pixels, **words):
        path.parent.mkdir(parents=True, exist_ok=True)
        words = {"photometric": "minisblack"} | words
        tifffile.imwrite(path, np.asarray(pixels), **words)

    return write


@pytest.fixture
def write_hdf5():
    h5py = pytest.importorskip("h5py")

    def write(path, sizes=None, **arrays):
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            for name, values in arrays.items():
                stored = file.create_dataset(name.replace("__", "/"), data=np.asarray(values))
                if sizes is not None:
                    stored.attrs["element_size_um"] = sizes
        return path

    return write
