"""Embeddings in a store against those of the network in memory."""

import numpy as np
import pytest
import zarr

from spoco_zoo.embedding_stores import create_embeddings, finish_embeddings, write_embeddings
from spoco_zoo.errors import OutputError
from spoco_zoo.label_metadata import Described

# of an image that is stored as (t, x, y, z)
DEEP = Described(
    ("t", "x", "y", "z"),
    ("time", "space", "space", "space"),
    ("second", "nanometer", "nanometer", "nanometer"),
    (9.0, 0.25, 0.5, 2.0),
    (0.0, 3.0, 2.0, 1.0),
    (3, 2, 1),
    None,
)
FLAT = Described(("y", "x"), ("space",) * 2, (None,) * 2, (1.0,) * 2, (0.0,) * 2, (0, 1), None)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_what_is_written_is_read_and_its_place_is_known(tmp_path, version):
    pytest.importorskip("ome_zarr")
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    embedding = np.random.default_rng(0).normal(size=(3, 5, 20, 9)).astype(np.float32)
    part = tmp_path / ".e.part"
    create_embeddings(part, embedding.shape, (4, 8, 8), DEEP, version)
    for start in (8, 0, 16):
        box = (slice(0, 5), slice(start, min(start + 8, 20)), slice(0, 9))
        write_embeddings(part, box, embedding[(slice(None), *box)])
    finish_embeddings(part, tmp_path / "deep" / "e.ome.zarr", overwrite=False)
    assert not part.exists()
    (node,) = Reader(parse_url(str(tmp_path / "deep" / "e.ome.zarr")))()
    assert (np.asarray(node.data[0]) == embedding).all()
    assert [axis["name"] for axis in node.metadata["axes"]] == ["c", "z", "y", "x"]
    assert [axis.get("unit") for axis in node.metadata["axes"]] == [None, *("nanometer",) * 3]
    scale, translation = node.metadata["coordinateTransformations"][0]
    assert scale["scale"] == [1.0, 2.0, 0.5, 0.25]
    assert translation["translation"] == [0.0, 1.0, 2.0, 3.0]


def test_embeddings_that_are_there_are_not_replaced_unasked(tmp_path):
    target = tmp_path / "e.ome.zarr"
    for overwrite in (False, True):
        create_embeddings(tmp_path / "part", (2, 4, 4), (4, 4), FLAT, "0.4")
        finish_embeddings(tmp_path / "part", target, overwrite=overwrite)
        assert zarr.open_array(str(target / "0")).shape == (2, 4, 4)
    create_embeddings(tmp_path / "part", (2, 4, 4), (4, 4), FLAT, "0.4")
    with pytest.raises(OutputError) as error:
        finish_embeddings(tmp_path / "part", target, overwrite=False)
    assert str(error.value) == (f"{target}: exists already: choose another name or add --overwrite")
