"""Measurements are those of scikit-image, and do not depend on how an image is cut."""

import csv
import io
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.measure import regionprops_table

import spoco_zoo.measurements
from spoco_zoo.errors import ImageError, MissingExtraError
from spoco_zoo.measurements import (
    check_parquet,
    measure,
    merge,
    round_column,
    to_csv,
    to_parquet,
    to_table,
)
from spoco_zoo.outlines import trace_objects

quick = settings(max_examples=100, deadline=None)


@st.composite
def scenes(draw):
    """Labels of an image or a volume, and two channels of it."""
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=3, max_side=7))
    labels = draw(hnp.arrays(np.uint32, shape, elements=st.sampled_from([0, 1, 2, 70_000])))
    kind = draw(st.sampled_from([np.uint8, np.uint16, np.float32]))
    image = np.random.default_rng(draw(st.integers(0, 9))).uniform(0, 200, (2, *shape))
    return labels, image.astype(kind)


def rims_of(labels, found):
    objects = trace_objects(labels, found.boxes())
    return {traced.label: (traced.perimeter, traced.hull_area) for traced in objects}


def same(one, other):
    assert list(one) == list(other)
    for name, column in one.items():
        np.testing.assert_allclose(column, other[name], rtol=1e-9, err_msg=name)


@quick
@given(scenes())
def test_numbers_are_those_of_scikit_image(scene):
    labels, image = scene
    assume(labels.any())
    found, n_axes = measure(labels, image), labels.ndim
    table = to_table(found, (3.0, 0.5, 0.25)[-n_axes:], rims_of(labels, found))
    names = ["label", "area", "centroid", "bbox", "intensity_mean", "intensity_max"]
    names += ["intensity_min", "equivalent_diameter_area"]
    names += ["perimeter", "eccentricity"] if n_axes == 2 else []
    theirs = regionprops_table(labels, np.moveaxis(image, 0, -1), properties=names)
    size, axes = ("area", "yx") if n_axes == 2 else ("volume", "zyx")
    unit = 0.125 if n_axes == 2 else 0.375
    assert (table["label"] == theirs["label"]).all()
    assert (table[f"{size}_px"] == theirs["area"]).all()
    np.testing.assert_allclose(table[f"{size}_um{n_axes}"], theirs["area"] * unit)
    for n, axis in enumerate(axes):
        scale = (3.0, 0.5, 0.25)[-n_axes:][n]
        np.testing.assert_allclose(table[f"centroid_{axis}_px"], theirs[f"centroid-{n}"])
        np.testing.assert_allclose(table[f"centroid_{axis}_um"], theirs[f"centroid-{n}"] * scale)
        assert (table[f"box_start_{axis}_px"] == theirs[f"bbox-{n}"]).all()
        assert (table[f"box_stop_{axis}_px"] == theirs[f"bbox-{n + n_axes}"]).all()
    for n in range(2):
        for word in ("mean", "min", "max"):
            ours = table[f"{word}_channel_{n + 1}"]
            np.testing.assert_allclose(ours, theirs[f"intensity_{word}-{n}"], rtol=1e-5)
    diameters = table["equivalent_diameter_px"]
    np.testing.assert_allclose(diameters, theirs["equivalent_diameter_area"])
    in_um = table["equivalent_diameter_um"]
    np.testing.assert_allclose(in_um, diameters * unit ** (1 / n_axes))
    if n_axes == 2:
        many = theirs["area"] > 1
        np.testing.assert_allclose(np.nan_to_num(table["perimeter_px"]), theirs["perimeter"])
        ours = table["eccentricity"][many]
        np.testing.assert_allclose(ours, theirs["eccentricity"][many], atol=1e-6)
        assert np.isnan(table["eccentricity"][~many]).all()


@quick
@given(scenes(), st.data())
def test_parts_add_up_in_any_order(scene, data):
    labels, image = scene
    axis = data.draw(st.integers(0, labels.ndim - 1))
    cuts = sorted(data.draw(st.lists(st.integers(0, labels.shape[axis]), max_size=3)))
    parts = []
    for start, stop in zip([0, *cuts], [*cuts, labels.shape[axis]], strict=True):
        cut = (*[slice(None)] * axis, slice(start, stop))
        offset = [0] * labels.ndim
        offset[axis] = start
        parts.append(measure(labels[cut], image[(slice(None), *cut)], offset))
    whole = to_table(measure(labels, image))
    same(to_table(merge(data.draw(st.permutations(parts)))), whole)


def test_rows_at_a_time_change_nothing(monkeypatch):
    random = np.random.default_rng(0)
    labels, image = random.integers(0, 9, (7, 12, 13)), random.normal(size=(1, 7, 12, 13))
    whole = to_table(measure(labels, image))
    monkeypatch.setattr(spoco_zoo.measurements, "_AT_ONCE", 200)
    same(to_table(measure(labels, image)), whole)


def test_an_object_far_away_has_the_shape_that_it_has_nearby():
    labels = np.zeros((40, 50), np.uint8)
    labels[5:9, 3:30] = 1
    labels[9:30, 20:24] = 1
    near, far = measure(labels), measure(labels, offset=(10**7, 10**8))
    halves = [measure(labels[:15], offset=(10**7, 10**8))]
    halves.append(measure(labels[15:], offset=(10**7 + 15, 10**8)))
    expected = to_table(near)["eccentricity"]
    assert expected[0] > 0.5
    assert to_table(far)["eccentricity"] == pytest.approx(expected)
    assert to_table(merge(halves))["eccentricity"] == pytest.approx(expected)


def test_what_is_not_defined_or_not_known_is_empty():
    labels = np.zeros((6, 8), np.uint8)
    labels[0, 0], labels[2:5, 2:6] = 1, 2
    found = measure(labels, np.ones((1, 6, 8), np.uint16))
    table = to_table(found, None, rims_of(labels, found))
    rows = list(csv.DictReader(io.StringIO(to_csv(table).decode())))
    assert [rows[0][name] for name in ("perimeter_px", "eccentricity")] == ["", ""]
    assert [rows[0][name] for name in ("area_um2", "centroid_y_um", "perimeter_um")] == [""] * 3
    assert [row["solidity"] for row in rows] == ["1", "1"]
    assert (rows[1]["area_px"], rows[1]["centroid_x_px"]) == ("12", "3.5")
    assert (rows[1]["mean_channel_1"], rows[1]["perimeter_px"]) == ("1", "10")
    # oblong pixels have no one length of a step; without outlines there is no rim
    uneven = to_table(found, (0.5, 0.25), rims_of(labels, found))
    assert np.isnan(uneven["perimeter_um"]).all()
    assert uneven["area_um2"].tolist() == [0.125, 1.5]
    even = to_table(found, (0.5, 0.5), rims_of(labels, found))
    assert even["perimeter_um"][1] == 5
    assert np.isnan(to_table(found)["solidity"]).all()


def test_columns_do_not_depend_on_what_was_found():
    full, empty = np.ones((3, 4), int), np.zeros((3, 4), int)
    image = np.zeros((2, 3, 4))
    header = to_csv(to_table(measure(empty, image))).decode()
    assert header == to_csv(to_table(measure(full, image))).decode().splitlines()[0] + "\n"
    assert "volume_px" in to_table(measure(full[None]))


def test_long_numbers_are_cut_and_whole_ones_are_kept():
    assert round_column(np.array([1 / 3, 2.0, np.nan, 1e12])) == [0.333333333, 2, None, 10**12]
    assert round_column(np.array([1 << 62])) == [1 << 62]


def test_parquet_holds_the_table_and_null_where_it_is_empty():
    parquet = pytest.importorskip("pyarrow.parquet")
    labels = np.array([[1, 0, 2, 2]])
    found = measure(labels)
    table = to_table(found, (2.0, 1.0), rims_of(labels, found))
    read = parquet.read_table(io.BytesIO(to_parquet(table))).to_pydict()
    assert list(read) == list(table)
    assert read["label"] == [1, 2]
    assert read["area_um2"] == [2, 4]
    assert read["eccentricity"] == [None, 1]


def test_without_pyarrow_parquet_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError) as error:
        check_parquet()
    assert str(error.value) == (
        "tables in Parquet need pyarrow: pip install 'spoco-zoo[parquet]', or save CSV"
    )


def test_shapes_that_cannot_be_measured_are_told():
    with pytest.raises(ImageError) as error:
        measure(np.ones((2, 3), int), np.ones((1, 3, 2)))
    assert str(error.value) == (
        "the image is (3, 2) and the labels are (2, 3): they must have the same shape"
    )
    with pytest.raises(ImageError) as error:
        measure(np.ones(3, int))
    assert str(error.value) == "labels are (3,): expected (y, x) or (z, y, x)"
