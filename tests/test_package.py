"""A package is read as data, verified whole, and refused with a reason where it is not right."""

import copy
import hashlib
import io
import os
import pickle
import random
import shutil
import struct
import zipfile
from pathlib import Path

import pytest

from spoco_zoo import normalization, recipe
from spoco_zoo.errors import PackageError, SpocoZooError
from spoco_zoo.foreground import Head
from spoco_zoo.package import Package, load_package

TINY = Path(__file__).parent / "data" / "tiny_package"
FILES = sorted(path.name for path in TINY.iterdir() if path.name != "rdf.yaml")
needs_links = pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")


def refused(location):
    """The sentence with which a package is refused."""
    with pytest.raises(PackageError) as error:
        load_package(location)
    return str(error.value)


def spoco(words):
    return words["config"]["spoco_zoo"]


# --- what loading gives


def test_the_words_of_the_description_arrive(tiny_package):
    package = load_package(tiny_package)
    assert package == Package(
        name="Tiny",
        location=tiny_package,
        onnx_name="weights.onnx",
        input_id="image",
        channels=1,
        scale_um=None,
        normalization=normalization.ScaleRange(),
        outputs=("embedding", "foreground"),
        embedding_dim=2,
        config=package.config,
    )
    assert package.config.recipe == recipe.Recipe(
        clustering=recipe.MeanShift(bandwidth=0.5),
        foreground=Head(threshold=0.5),
        min_size=4,
        fill_reach=2,
    )
    assert (package.config.multiple_of, package.config.halo) == ((2, 2), (4, 4))
    assert (package.config.crop, package.config.delta_var) == ((32, 32), 0.5)
    assert sorted(package.config.files) == FILES


@pytest.mark.parametrize(
    ("kind", "n_axes", "has_momentum"),
    [("package", 2, False), ("momentum", 2, True), ("volume", 3, False)],
)
def test_a_package_says_what_it_is_for(load_tiny, kind, n_axes, has_momentum):
    package = load_tiny(kind)
    assert (package.n_axes, package.has_momentum) == (n_axes, has_momentum)
    assert package.has_foreground_head


def test_a_package_without_foreground_says_so(tiny_package, edit_rdf):
    def change(words):
        words["outputs"].pop()
        spoco(words)["recipe"]["foreground"] = {"rule": "everywhere"}

    edit_rdf(tiny_package, change)
    assert not load_package(tiny_package).has_foreground_head


def test_folder_zip_and_description_give_the_same(tiny_package, zip_folder, tmp_path, monkeypatch):
    packed = zip_folder(tiny_package, tmp_path / "packed.zip")
    monkeypatch.chdir(tiny_package)
    locations = [tiny_package, str(tiny_package), tiny_package / "rdf.yaml", packed, "rdf.yaml"]
    packages = [load_package(location) for location in locations]
    words = [package.model_dump(exclude={"location"}) for package in packages]
    assert all(other == words[0] for other in words)
    assert [package.location for package in packages] == [*[tiny_package] * 3, packed, Path()]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_files_read_from_the_zip_are_those_of_the_folder(
    tiny_package, zip_folder, tmp_path, compression
):
    packed = load_package(
        zip_folder(tiny_package, tmp_path / "packed.zip", compression=compression)
    )
    whole = load_package(tiny_package)
    for name in FILES:
        assert packed.read(name) == whole.read(name) == (TINY / name).read_bytes()


def test_reading_a_zip_unpacks_nothing(tiny_package, zip_folder, tmp_path):
    folder = tmp_path / "alone"
    folder.mkdir()
    load_package(zip_folder(tiny_package, folder / "packed.zip")).read("weights.onnx")
    assert [path.name for path in folder.iterdir()] == ["packed.zip"]


def test_the_pixel_size_is_known_where_every_axis_states_micrometers(tiny_package, edit_rdf):
    def change(words):
        for axis, scale in zip(words["inputs"][0]["axes"][2:], (0.5, 0.25), strict=True):
            axis.update(unit="micrometer", scale=scale)

    edit_rdf(tiny_package, change)
    assert load_package(tiny_package).scale_um == (0.5, 0.25)
    edit_rdf(tiny_package, lambda words: words["inputs"][0]["axes"][2].pop("unit"))
    assert load_package(tiny_package).scale_um is None


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (None, normalization.ScaleLinear()),
        (
            {"id": "zero_mean_unit_variance", "kwargs": {"axes": ["x", "y"], "eps": 1e-3}},
            normalization.ZeroMeanUnitVariance(eps=1e-3),
        ),
        (
            {
                "id": "scale_range",
                "kwargs": {"axes": ["y", "x"], "min_percentile": 1, "max_percentile": 99},
            },
            normalization.ScaleRange(min_percentile=1, max_percentile=99),
        ),
        (
            {"id": "fixed_zero_mean_unit_variance", "kwargs": {"mean": 5, "std": 2}},
            normalization.FixedZeroMeanUnitVariance(mean=(5,), std=(2,)),
        ),
        (
            {
                "id": "fixed_zero_mean_unit_variance",
                "kwargs": {"axis": "channel", "mean": [5], "std": [2]},
            },
            normalization.FixedZeroMeanUnitVariance(mean=(5,), std=(2,)),
        ),
        (
            {"id": "scale_linear", "kwargs": {"gain": 2}},
            normalization.ScaleLinear(gain=(2,), offset=(0,)),
        ),
        (
            {"id": "scale_linear", "kwargs": {"axis": "channel", "gain": [2], "offset": [1]}},
            normalization.ScaleLinear(gain=(2,), offset=(1,)),
        ),
    ],
)
def test_preprocessing_is_understood(tiny_package, edit_rdf, operation, expected):
    def change(words):
        image = words["inputs"][0]
        image["preprocessing"] = [] if operation is None else [operation]

    edit_rdf(tiny_package, change)
    assert load_package(tiny_package).normalization == expected


def test_what_the_format_knows_more_is_passed_over(tiny_package, edit_rdf):
    def change(words):
        words |= {"license": "MIT", "authors": [{"name": "A"}], "run_mode": {"name": "x"}}
        words["outputs"][0]["data"] = {"type": "float32"}
        words["weights"]["torchscript"] = {"source": "../elsewhere.pt"}
        words["weights"]["onnx"]["source"] = {"source": "weights.onnx"}

    before = load_package(tiny_package)
    edit_rdf(tiny_package, change)
    assert load_package(tiny_package) == before


def test_without_a_second_hash_that_of_the_list_decides(tiny_package, edit_rdf):
    edit_rdf(tiny_package, lambda words: words["weights"]["onnx"].pop("sha256"))
    assert load_package(tiny_package).onnx_name == "weights.onnx"


# --- damaged files


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_one_flipped_bit_in_any_file_is_refused(tiny_package, name, place):
    path = tiny_package / name
    content = bytearray(path.read_bytes())
    before = hashlib.sha256(content).hexdigest()
    content[round(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)
    after = hashlib.sha256(content).hexdigest()
    assert refused(tiny_package) == (
        f"{path}: sha256 is {after[:8]}…, rdf.yaml says {before[:8]}…: "
        "the file was changed after export; export again"
    )


def test_a_hash_that_differs_in_its_last_digit_differs(tiny_package, edit_rdf):
    true = hashlib.sha256((tiny_package / "README.md").read_bytes()).hexdigest()
    other = true[:-1] + ("0" if true[-1] != "0" else "1")
    edit_rdf(tiny_package, lambda words: spoco(words)["files"].update({"README.md": other}))
    assert refused(tiny_package) == (
        f"{tiny_package / 'README.md'}: sha256 is {true[:8]}…, rdf.yaml says {true[:8]}…: "
        "the file was changed after export; export again"
    )


def test_a_file_that_changes_after_loading_is_not_read(tiny_package):
    package = load_package(tiny_package)
    path = tiny_package / "weights.onnx"
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(b"other")
    after = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(PackageError) as error:
        package.read("weights.onnx")
    assert str(error.value) == (
        f"{path}: sha256 is {after[:8]}…, rdf.yaml says {before[:8]}…: "
        "the file was changed after export; export again"
    )


@pytest.mark.parametrize("name", [*FILES, "rdf.yaml"])
def test_a_missing_file_is_named(tiny_package, name):
    (tiny_package / name).unlink()
    assert refused(tiny_package) == (
        f"{tiny_package / name}: cannot be read (No such file or directory): "
        "the package is incomplete; copy or export it again"
    )


def test_a_folder_in_the_place_of_a_file_is_no_file(tiny_package):
    (tiny_package / "README.md").unlink()
    (tiny_package / "README.md").mkdir()
    assert refused(tiny_package) == (
        f"{tiny_package / 'README.md'}: is no plain file: copy or export the package again"
    )


def test_a_place_without_package_is_told(tmp_path):
    assert refused(tmp_path / "none") == (
        f"{tmp_path / 'none'}: no such package: expected a folder or a zip"
    )


# --- paths that leave the package


@pytest.mark.parametrize(
    "name",
    [
        "../weights.onnx",
        "a/../../weights.onnx",
        "..\\weights.onnx",
        "/etc/hostname",
        "\\\\server\\share",
        "C:\\weights.onnx",
        "https://example.org/weights.onnx",
        "file:///etc/hostname",
        "a//b",
        "..",
        "",
        "a\0b",
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_path_out_of_the_package_is_refused(
    tiny_package, edit_rdf, zip_folder, tmp_path, name, packed
):
    (tmp_path / "weights.onnx").write_bytes((TINY / "weights.onnx").read_bytes())
    good = hashlib.sha256((TINY / "weights.onnx").read_bytes()).hexdigest()
    edit_rdf(tiny_package, lambda words: spoco(words)["files"].update({name: good}))
    location = zip_folder(tiny_package, tmp_path / "packed.zip") if packed else tiny_package
    assert refused(location) == (
        f"{location}: names the file {name!r}: expected a path inside the package"
    )


@needs_links
@pytest.mark.parametrize("name", ["weights.onnx", "rdf.yaml"])
def test_a_link_out_of_the_package_is_refused(tiny_package, tmp_path, name):
    outside = tmp_path / "outside"
    shutil.move(tiny_package / name, outside)
    (tiny_package / name).symlink_to(outside)
    assert refused(tiny_package) == (
        f"{tiny_package}: the file {name!r} is a link that leaves the package: copy it inside"
    )


@needs_links
def test_a_folder_that_is_a_link_out_of_the_package_is_refused(tiny_package, edit_rdf, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"words")
    (tiny_package / "inner").symlink_to(tmp_path / "outside")
    good = hashlib.sha256(b"words").hexdigest()
    edit_rdf(tiny_package, lambda words: spoco(words)["files"].update({"inner/file": good}))
    assert refused(tiny_package) == (
        f"{tiny_package}: the file 'inner/file' is a link that leaves the package: copy it inside"
    )


@needs_links
def test_a_link_inside_the_package_and_one_to_the_package_are_followed(tiny_package, tmp_path):
    shutil.move(tiny_package / "weights.onnx", tiny_package / "there")
    (tiny_package / "weights.onnx").symlink_to("there")
    (tmp_path / "link").symlink_to(tiny_package)
    assert (
        load_package(tmp_path / "link").read("weights.onnx") == (TINY / "weights.onnx").read_bytes()
    )


@needs_links
def test_a_link_to_itself_ends(tiny_package):
    path = tiny_package / "README.md"
    path.unlink()
    path.symlink_to("README.md")
    assert refused(tiny_package) == (
        f"{path}: cannot be read (Too many levels of symbolic links): "
        "the package is incomplete; copy or export it again"
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes in folders")
def test_a_pipe_is_not_waited_for(tiny_package):
    path = tiny_package / "README.md"
    path.unlink()
    os.mkfifo(path)
    assert refused(tiny_package) == (f"{path}: is no plain file: copy or export the package again")


# --- a description that is none


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a: \xff\xfe", "is not UTF-8 text: the file is damaged"),
        ("type: model".encode("utf-16"), "is not UTF-8 text: the file is damaged"),
        (b"", "holds a NoneType: expected words and values"),
        (b"- a\n- b", "holds a list: expected words and values"),
        (b"just words", "holds a str: expected words and values"),
        (b"a: [1, 2", "is not plain YAML (expected ',' or ']', but got '<stream end>')"),
        (b"a: b\x00", "is not plain YAML (ReaderError)"),
        (b"a: 1\n---\na: 2", "is not plain YAML (but found another document)"),
        (b"a: 2001-99-99", "is not plain YAML (ValueError)"),
        (b"a: " + b"9" * 5000, "is not plain YAML (ValueError)"),
        (b"a: 0x" + b"f" * 5000, "is not plain YAML (a number beyond all counts)"),
        (b"a: " + b"[" * 100_000, "is not plain YAML (very many values, or deep ones)"),
        (b"? [a]\n: b", "is not plain YAML (found unhashable key)"),
        (b"a: !!bool maybe", "is not plain YAML (KeyError)"),
        (b"a: !!int ''", "is not plain YAML (IndexError)"),
        (b"a: !!timestamp never", "is not plain YAML (AttributeError)"),
        (b"a: !own value", "is not plain YAML (could not determine a constructor for the tag"),
    ],
)
def test_what_is_no_description_is_refused(tiny_package, content, problem):
    (tiny_package / "rdf.yaml").write_bytes(content)
    place = tiny_package / "rdf.yaml"
    if problem.endswith("tag"):
        problem += " '!own')"
    if problem.endswith(")"):
        problem += ": the file is damaged"
    assert refused(tiny_package) == f"{place}: {problem}"


@pytest.mark.parametrize(
    "content",
    [
        "a: &x [1]\nb: *x",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]",
        "a: &x {k: 1}\nb: {<<: *x}",
    ],
)
def test_an_alias_is_refused_before_it_can_grow(tiny_package, content):
    (tiny_package / "rdf.yaml").write_text(content)
    assert refused(tiny_package) == (
        f"{tiny_package / 'rdf.yaml'}: is not plain YAML (an alias): the file is damaged"
    )


@pytest.mark.parametrize(
    "tag", ["object/apply:os.mkdir", "object/new:os.mkdir", "name:os.mkdir", "module:os"]
)
def test_a_python_tag_makes_nothing(tiny_package, tmp_path, tag):
    marker = tmp_path / "marker"
    (tiny_package / "rdf.yaml").write_text(f"a: !!python/{tag} ['{marker}']")
    full = f"tag:yaml.org,2002:python/{tag}"
    assert refused(tiny_package) == (
        f"{tiny_package / 'rdf.yaml'}: is not plain YAML (could not determine a constructor "
        f"for the tag {full!r}): the file is damaged"
    )
    assert not marker.exists()


def test_a_description_of_megabytes_is_none(tiny_package):
    path = tiny_package / "rdf.yaml"
    path.write_bytes(path.read_bytes() + b"#" * 4_000_000)
    assert refused(tiny_package) == (
        f"{path}: has {path.stat().st_size} bytes: expected at most 4000000; "
        "this is no model description"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"format_version": "0.4.10"}, "model of format 0.4.10"),
        ({"format_version": "0.6.0"}, "model of format 0.6.0"),
        ({"format_version": "1.0"}, "model of format 1.0"),
        ({"format_version": "0.5"}, "model of format 0.5"),
        ({"format_version": 0.5}, "model of format 0.5"),
        ({"format_version": "10.5.4"}, "model of format 10.5.4"),
        ({"format_version": None}, "model of format None"),
        ({"type": "dataset"}, "dataset of format 0.5.4"),
        ({"type": None}, "None of format 0.5.4"),
    ],
)
def test_another_format_or_type_is_refused(tiny_package, edit_rdf, words, told):
    edit_rdf(tiny_package, lambda all_words: all_words.update(words))
    assert refused(tiny_package) == (
        f"{tiny_package / 'rdf.yaml'}: is {told}: expected model of format 0.5; "
        "update the package with bioimageio update-format"
    )


# --- a description with wrong words


def _preprocess(*operations):
    return lambda words: words["inputs"][0].update(preprocessing=list(operations))


def _set(*path, value):
    """Make a change that puts a value at a place of the description."""

    def change(words):
        for step in path[:-1]:
            words = words[step]
        words[path[-1]] = value

    return change


def _pop(*path):
    def change(words):
        for step in path[:-1]:
            words = words[step]
        words.pop(path[-1])

    return change


CONFIG = ("config", "spoco_zoo")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            _pop("config"),
            "has no config.spoco_zoo: expected a package written by spoco-zoo export",
        ),
        (
            _pop("config", "spoco_zoo"),
            "has no config.spoco_zoo: expected a package written by spoco-zoo export",
        ),
        (
            _pop("weights", "onnx"),
            "has no onnx weights: only these are run; export them too",
        ),
        (
            lambda words: words["inputs"].append(copy.deepcopy(words["inputs"][0])),
            "has 2 inputs: expected one image",
        ),
        (_set("inputs", value=[]), "has 0 inputs: expected one image"),
        (
            lambda words: words["inputs"][0]["axes"].reverse(),
            "axes of image are x, y, channel, batch: "
            "expected batch, channel, y, x with channel names",
        ),
        (
            _pop("inputs", 0, "axes", 0),
            "axes of image are channel, y, x: expected batch, channel, y, x with channel names",
        ),
        (
            lambda words: words["outputs"][1]["axes"].insert(2, {"type": "space", "id": "z"}),
            "axes of foreground are batch, channel, z, y, x: "
            "expected batch, channel, y, x with channel names",
        ),
        (
            _pop("outputs", 0, "axes", 1, "channel_names"),
            "axes of embedding are batch, channel, y, x: "
            "expected batch, channel, y, x with channel names",
        ),
        (
            lambda words: spoco(words).update(multiple_of=[1, 2, 2], halo=[1, 4, 4], crop=[8] * 3),
            "axes of image are batch, channel, y, x: "
            "expected batch, channel, z, y, x with channel names",
        ),
        (
            _pop("outputs", 0),
            "outputs are foreground: expected embedding, "
            "and at most foreground and momentum_embedding",
        ),
        (
            _set("outputs", 1, "id", value="labels"),
            "outputs are embedding, labels: expected embedding, "
            "and at most foreground and momentum_embedding",
        ),
        (
            _set("outputs", value=[]),
            "outputs are : expected embedding, and at most foreground and momentum_embedding",
        ),
        (
            _set("weights", "onnx", "sha256", value="0" * 64),
            "states two sha256 of weights.onnx: export the package again",
        ),
        (
            _pop(*CONFIG, "files", "weights.onnx"),
            "the ONNX weights are 'weights.onnx', which is no file that config.spoco_zoo lists: "
            "expected one of the package; export it again",
        ),
        (
            _set("weights", "onnx", "source", value="other.onnx"),
            "the ONNX weights are 'other.onnx', which is no file that config.spoco_zoo lists: "
            "expected one of the package; export it again",
        ),
        (
            lambda words: words["outputs"].pop(),
            "the foreground rule is head and there is no foreground output: "
            "export the package again",
        ),
        (
            _set(*CONFIG, "recipe", "clustering", value={"method": "consistency"}),
            "the method is consistency and there is no momentum_embedding output: "
            "export the package again",
        ),
        (
            _set(
                *(*CONFIG, "recipe", "foreground"),
                value={"rule": "prototype", "center": [0, 0, 0], "radius": 1},
            ),
            "the foreground prototype has 3 numbers and the embedding 2: export the package again",
        ),
    ],
)
def test_a_description_that_does_not_fit_is_refused(tiny_package, edit_rdf, change, problem):
    edit_rdf(tiny_package, change)
    assert refused(tiny_package) == f"{tiny_package / 'rdf.yaml'}: {problem}"


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        (_pop("name"), "name", "field required"),
        (_pop("weights"), "weights", "field required"),
        (_set("inputs", value="image"), "inputs", "input should be a valid tuple"),
        (
            _set("inputs", 0, "axes", 0, "type", value="Batch"),
            "inputs.0.axes.0.type",
            "input should be 'batch', 'channel', 'space', 'index' or 'time'",
        ),
        (
            _set("weights", "onnx", "source", value=5),
            "weights.onnx.source",
            "input should be a valid string",
        ),
        (_pop("weights", "onnx", "opset_version"), "weights.onnx.opset_version", "field required"),
        (
            _set(*CONFIG, "words", value=1),
            "config.spoco_zoo.words",
            "extra inputs are not permitted",
        ),
        (_set(*CONFIG, "format", value=2), "config.spoco_zoo.format", "input should be 1"),
        (_pop(*CONFIG, "halo"), "config.spoco_zoo.halo", "field required"),
        (
            _set(*CONFIG, "delta_var", value=0),
            "config.spoco_zoo.delta_var",
            "input should be greater than 0",
        ),
        (
            _set(*CONFIG, "delta_dist", value=float("nan")),
            "config.spoco_zoo.delta_dist",
            "input should be greater than 0",
        ),
        (
            _set(*CONFIG, "recipe", "clustering", "bandwidth", value=-1),
            "config.spoco_zoo.recipe.clustering.mean_shift.bandwidth",
            "input should be greater than 0",
        ),
        (
            _set(*CONFIG, "recipe", "clustering", "method", value="watershed"),
            "config.spoco_zoo.recipe.clustering",
            "input tag 'watershed' found using 'method' does not match any of the expected tags: "
            "'mean_shift', 'hdbscan', 'consistency'",
        ),
        (
            _set(*CONFIG, "recipe", "min_sise", value=5),
            "config.spoco_zoo.recipe.min_sise",
            "extra inputs are not permitted",
        ),
        (
            _set(*CONFIG, "halo", value=[4]),
            "config.spoco_zoo",
            "multiple_of, halo and crop have 2, 1 and 2 numbers: "
            "expected 2 each for images, 3 for volumes",
        ),
        (
            lambda words: spoco(words).update(multiple_of=[2], halo=[4], crop=[32]),
            "config.spoco_zoo",
            "multiple_of, halo and crop have 1, 1 and 1 numbers: "
            "expected 2 each for images, 3 for volumes",
        ),
        (
            _set(*CONFIG, "multiple_of", value=[2, 0]),
            "config.spoco_zoo",
            "multiple_of and halo hold impossible sizes",
        ),
        (
            _set(*CONFIG, "multiple_of", value=[2, 5000]),
            "config.spoco_zoo",
            "multiple_of and halo hold impossible sizes",
        ),
        (
            _set(*CONFIG, "halo", value=[4, -1]),
            "config.spoco_zoo",
            "multiple_of and halo hold impossible sizes",
        ),
        (
            _set(*CONFIG, "halo", value=[4, 10**6]),
            "config.spoco_zoo",
            "halo holds impossible sizes",
        ),
        (
            _set(*CONFIG, "files", value={"weights.onnx": 5}),
            "config.spoco_zoo.files.weights.onnx",
            "input should be a valid string",
        ),
    ],
)
def test_an_impossible_or_unknown_word_is_refused_by_its_place(
    tiny_package, edit_rdf, change, field, reason
):
    edit_rdf(tiny_package, change)
    assert refused(tiny_package) == (
        f"{tiny_package / 'rdf.yaml'}: {field}: {reason}; export the package again"
    )


@pytest.mark.parametrize(
    ("operations", "names"),
    [
        ([{"id": "sigmoid"}], "sigmoid"),
        ([{"kwargs": {}}], "None"),
        ([{"id": "clip", "kwargs": {"min": 0, "max": 1}}], "clip"),
        (
            [
                {"id": "scale_linear", "kwargs": {"gain": 2}},
                {"id": "scale_linear", "kwargs": {"gain": 2}},
            ],
            "scale_linear and scale_linear",
        ),
        ([{"id": "zero_mean_unit_variance"}], "zero_mean_unit_variance"),
        (
            [{"id": "zero_mean_unit_variance", "kwargs": {"axes": ["batch", "y", "x"]}}],
            "zero_mean_unit_variance",
        ),
        (
            [{"id": "zero_mean_unit_variance", "kwargs": {"axes": ["channel", "y", "x"]}}],
            "zero_mean_unit_variance",
        ),
        ([{"id": "zero_mean_unit_variance", "kwargs": {"axes": ["x"]}}], "zero_mean_unit_variance"),
        ([{"id": "zero_mean_unit_variance", "kwargs": {"axes": [[]]}}], "zero_mean_unit_variance"),
        ([{"id": "zero_mean_unit_variance", "kwargs": "no"}], "zero_mean_unit_variance"),
        (
            [{"id": "zero_mean_unit_variance", "kwargs": {"axes": ["y", "x"], "epsilon": 1}}],
            "zero_mean_unit_variance",
        ),
        ([{"id": "scale_range", "kwargs": {"axes": ["z", "y", "x"]}}], "scale_range"),
        (
            [
                {
                    "id": "scale_range",
                    "kwargs": {"axes": ["y", "x"], "reference_tensor": "other"},
                }
            ],
            "scale_range",
        ),
        (
            [
                {
                    "id": "scale_range",
                    "kwargs": {"axes": ["y", "x"], "min_percentile": 9, "max_percentile": 8},
                }
            ],
            "scale_range",
        ),
        ([{"id": "scale_linear", "kwargs": {"axis": "x", "gain": 2}}], "scale_linear"),
        ([{"id": "scale_linear", "kwargs": {"gain": "much"}}], "scale_linear"),
        (
            [{"id": "fixed_zero_mean_unit_variance", "kwargs": {"mean": 5}}],
            "fixed_zero_mean_unit_variance",
        ),
        (
            [{"id": "fixed_zero_mean_unit_variance", "kwargs": {"mean": 5, "std": 0}}],
            "fixed_zero_mean_unit_variance",
        ),
        ([{"id": "ensure_dtype", "kwargs": {"dtype": "uint8"}}], "ensure_dtype"),
    ],
)
def test_preprocessing_that_would_be_guessed_is_refused(tiny_package, edit_rdf, operations, names):
    edit_rdf(tiny_package, _preprocess(*operations))
    assert refused(tiny_package) == (
        f"{tiny_package / 'rdf.yaml'}: preprocessing {names} is not understood: expected one of "
        "zero_mean_unit_variance, fixed_zero_mean_unit_variance, scale_linear, scale_range, "
        "per channel over space"
    )


@pytest.mark.parametrize(("axis", "understood"), [("channel", True), (None, False)])
def test_one_number_for_many_channels_is_not_guessed(tiny_package, edit_rdf, axis, understood):
    kwargs = {"gain": 2} if axis is None else {"gain": [2, 3], "offset": [0, 1], "axis": axis}

    def change(words):
        words["inputs"][0]["axes"][1]["channel_names"] = ["red", "green"]
        words["inputs"][0]["preprocessing"] = [{"id": "scale_linear", "kwargs": kwargs}]

    edit_rdf(tiny_package, change)
    if understood:
        expected = normalization.ScaleLinear(gain=(2, 3), offset=(0, 1))
        assert load_package(tiny_package).normalization == expected
    else:
        assert " preprocessing scale_linear is not understood: " in refused(tiny_package)


def test_postprocessing_is_refused_since_it_is_not_done(tiny_package, edit_rdf):
    edit_rdf(tiny_package, _set("outputs", 1, "postprocessing", value=[{"id": "sigmoid"}]))
    assert refused(tiny_package) == (
        f"{tiny_package / 'rdf.yaml'}: foreground has postprocessing: expected none; "
        "export the package again"
    )


# --- zips


@pytest.fixture
def packed(tiny_package, zip_folder, tmp_path):
    return zip_folder(tiny_package, tmp_path / "packed.zip")


def _not_a_zip(path, reason):
    return f"{path}: cannot be read as a zip ({reason}): download or export it again"


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04" + b"\0" * 100])
def test_a_file_that_is_no_zip_is_told(tmp_path, content):
    path = tmp_path / "packed.zip"
    path.write_bytes(content)
    assert refused(path) == _not_a_zip(path, "File is not a zip file")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_truncated_zip_is_refused(packed, part):
    content = packed.read_bytes()
    packed.write_bytes(content[: int(part * len(content))])
    assert refused(packed) == _not_a_zip(packed, "File is not a zip file")


def test_a_description_in_a_subfolder_is_not_searched_for(tiny_package, zip_folder, tmp_path):
    path = zip_folder(tiny_package, tmp_path / "packed.zip", prefix="tiny/")
    assert refused(path) == (
        f"{path}: holds 0 files 'rdf.yaml': expected exactly one, "
        "at the top of the zip; export the package again"
    )


@pytest.mark.parametrize("name", ["rdf.yaml", "weights.onnx"])
def test_two_files_of_one_name_in_a_zip_are_refused(packed, tiny_package, name):
    with (
        zipfile.ZipFile(packed, "a") as file,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        file.write(tiny_package / name, name)
    assert refused(packed) == (
        f"{packed}: holds 2 files {name!r}: expected exactly one, "
        "at the top of the zip; export the package again"
    )


def test_a_file_that_is_missing_in_a_zip_is_named(tiny_package, zip_folder, tmp_path):
    (tiny_package / "README.md").unlink()
    path = zip_folder(tiny_package, tmp_path / "packed.zip")
    assert refused(path) == (
        f"{path}: holds 0 files 'README.md': expected exactly one, "
        "at the top of the zip; export the package again"
    )


def test_a_file_of_the_zip_with_another_hash_is_refused(tiny_package, zip_folder, tmp_path):
    before = hashlib.sha256((tiny_package / "README.md").read_bytes()).hexdigest()
    (tiny_package / "README.md").write_bytes(b"other")
    after = hashlib.sha256(b"other").hexdigest()
    path = zip_folder(tiny_package, tmp_path / "packed.zip")
    assert refused(path) == (
        f"{path / 'README.md'}: sha256 is {after[:8]}…, rdf.yaml says {before[:8]}…: "
        "the file was changed after export; export again"
    )


def test_a_zip_bomb_is_not_unpacked(tiny_package, zip_folder, tmp_path):
    (tiny_package / "README.md").write_bytes(b"\0" * 1_000_000)
    path = zip_folder(tiny_package, tmp_path / "packed.zip")
    with zipfile.ZipFile(path) as file:
        size = file.getinfo("README.md").compress_size
    assert refused(path) == (
        f"{path}: 'README.md' unpacks to 1000000 bytes from {size}: refused as a zip bomb"
    )


def test_a_zip_that_lies_about_sizes_is_not_unpacked_either(
    tiny_package, zip_folder, tmp_path, edit_rdf
):
    """The bomb of above that says it is small: memory stays bounded by what it says."""
    import tracemalloc

    (tiny_package / "bomb").write_bytes(b"\0" * 30_000_000)
    edit_rdf(tiny_package)
    path = zip_folder(tiny_package, tmp_path / "packed.zip")
    with zipfile.ZipFile(path) as file:
        info = file.getinfo("bomb")
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02", content.index(b"bomb", info.header_offset + 40) - 60)
    assert content[entry + 46 : entry + 50] == b"bomb"
    content[entry + 24 : entry + 28] = struct.pack("<I", 1000)
    path.write_bytes(content)
    tracemalloc.start()
    try:
        sentence = refused(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sentence == _not_a_zip(path, "Bad CRC-32 for file 'bomb'")
    assert peak < 5_000_000


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression_than_deflate_is_refused(tiny_package, zip_folder, tmp_path, method):
    path = zip_folder(tiny_package, tmp_path / "packed.zip", compression=method)
    assert refused(path) == (
        f"{path}: 'rdf.yaml' is compressed by method {method}: expected deflate; zip it again"
    )


def test_an_encrypted_zip_is_told(packed):
    content = bytearray(packed.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.find(signature)
        while start >= 0:
            content[start + offset] |= 1
            start = content.find(signature, start + 4)
    packed.write_bytes(content)
    with zipfile.ZipFile(packed) as file, pytest.raises(RuntimeError) as reason:
        file.read(file.getinfo("rdf.yaml"))
    assert refused(packed) == _not_a_zip(packed, reason.value)
    assert "encrypted" in str(reason.value)


# --- what a package carries is never run


def test_nothing_that_a_package_carries_is_ever_run(tiny_package, edit_rdf, tmp_path, monkeypatch):
    marker = tmp_path / "marker"

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    code = f"import os\nos.mkdir({str(marker)!r})\n"
    for name in ("net.py", "rdf.py", "conftest.py", "sitecustomize.py", "numpy.py"):
        (tiny_package / name).write_text(code)
    buffer = io.BytesIO()
    pickle.dump(Bomb(), buffer)
    (tiny_package / "weights.pt").write_bytes(buffer.getvalue())

    def change(words):
        words["weights"]["pytorch_state_dict"] = {
            "source": "weights.pt",
            "architecture": {"source": "net.py", "callable": "PackagedUNet"},
        }

    edit_rdf(tiny_package, change)
    monkeypatch.chdir(tiny_package)
    package = load_package(tiny_package)
    assert package.read("net.py") == code.encode()
    assert not marker.exists()
    pickle.loads(package.read("weights.pt"))
    assert marker.exists()


# --- whatever bytes come


def _mutate(content, draw):
    """Flip, drop, double or insert some bytes."""
    content = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8))):
        at = draw.randrange(len(content))
        match draw.randrange(4):
            case 0:
                content[at] = draw.randrange(256)
            case 1:
                del content[at : at + draw.randrange(1, 40)]
            case 2:
                content[at:at] = content[at : at + draw.randrange(1, 40)]
            case 3:
                content[at:at] = draw.choice(
                    (b"*a", b"&a ", b"!!bool ", b"!!int ", b"!!timestamp ", b"- ", b": ", b"\t")
                )
        content = content or bytearray(b"x")
    return bytes(content)


@pytest.mark.parametrize("seed", range(3))
def test_any_damage_to_the_description_ends_in_our_error_or_none(tiny_package, seed):
    draw = random.Random(seed)
    good = (tiny_package / "rdf.yaml").read_bytes()
    sentences = []
    for _ in range(100):
        (tiny_package / "rdf.yaml").write_bytes(_mutate(good, draw))
        try:
            load_package(tiny_package)
        except SpocoZooError as error:
            sentences.append(str(error))
    assert all(str(tiny_package) in sentence for sentence in sentences)
    assert len(sentences) > 50


@pytest.mark.parametrize("seed", range(3))
def test_any_damage_to_the_zip_ends_in_our_error_or_none(packed, seed):
    draw = random.Random(seed)
    good = packed.read_bytes()
    directory = good.index(b"PK\x01\x02")
    sentences = []
    for number in range(200):
        # half of them in the directory at the end, where the meaning is
        kept = directory if number % 2 else 0
        packed.write_bytes(good[:kept] + _mutate(good[kept:], draw))
        try:
            load_package(packed)
        except SpocoZooError as error:
            sentences.append(str(error))
    assert all(str(packed) in sentence for sentence in sentences)
    assert len(sentences) > 100
