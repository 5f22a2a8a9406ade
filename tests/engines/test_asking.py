"""Every engine that is there gives the right numbers, and a sentence where it gives none."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from spoco_zoo.engines import (
    ENGINES,
    asking,
    measure_peak,
    run_images,
    run_onnx,
    run_torchscript,
)
from spoco_zoo.errors import MissingExtraError, PackageError

DATA = Path(__file__).parent.parent / "data"
TYPES = ("float32", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
SHAPES = ((), (1,), (0, 3), (5, 1, 7))


def of_kind(kind):
    """Each engine of a kind as a parameter; a test that needs one that is missing is skipped."""
    return [pytest.param(e, id=e.name.split(" (")[0]) for e in ENGINES if e.kind == kind]


def with_some(kind, many, few):
    """Each engine of a kind with some words; of this Python, whose NPY is NumPy's, a few."""
    return [
        pytest.param(e, word, id=f"{e.name.split(' (')[0]}-{word}")
        for e in ENGINES
        if e.kind == kind
        for word in (many if e.from_cache else few)
    ]


def values(dtype, shape, seed=0):
    """Numbers that use the whole of their type, the odd floats among them."""
    random = np.random.default_rng(seed)
    if dtype == "bool":
        return random.integers(0, 2, shape).astype(bool)
    if dtype.startswith("float"):
        numbers = np.asarray(random.normal(size=shape)).astype(dtype)
        odd = np.array([np.inf, -np.inf, np.nan, -0.0, np.finfo(dtype).tiny, np.finfo(dtype).max])
        numbers.flat[: numbers.size] = np.resize(np.append(numbers.ravel(), odd), numbers.size)
        numbers.flat[: min(6, numbers.size)] = odd[: min(6, numbers.size)]
        return numbers
    info = np.iinfo(dtype)
    return random.integers(info.min, info.max, shape, dtype, endpoint=True)


def assert_same_bits(found, truth):
    assert found.dtype == truth.dtype
    assert found.shape == truth.shape
    assert found.tobytes() == truth.tobytes()


@pytest.fixture
def copier(tmp_path):
    """Write an ONNX file that gives its input back, and its negative or opposite before that."""
    onnx = pytest.importorskip("onnx")

    def write(dtype, shape):
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        names = ("input", "first", "second")
        words = [onnx.helper.make_tensor_value_info(name, kind, list(shape)) for name in names]
        nodes = [
            onnx.helper.make_node("Identity", ["input"], [name]) for name in ("second", "first")
        ]
        graph = onnx.helper.make_graph(nodes, "copy", words[:1], words[1:])
        opset = [onnx.helper.make_opsetid("", 17)]
        model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
        path = tmp_path / "copy.onnx"
        onnx.save(model, path)
        return path

    return write


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """TorchScript files: `copy` gives its input back twice, `words` no tensors."""
    torch = pytest.importorskip("torch")
    import warnings

    folder = tmp_path_factory.mktemp("scripts")

    class Net(torch.nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.kind = kind

        def forward(self, x):
            if self.kind == "one":
                return x * 2
            if self.kind == "list":
                return [x * 2, x * 3, x * 4]
            if self.kind == "words":
                return {"a": x * 2}
            if self.kind == "complex":
                return x.to(torch.complex64)
            return x.clone(), x.flatten()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in ("copy", "one", "list", "words", "complex"):
            net = torch.jit.trace(Net(kind), torch.ones(2, 2), check_trace=False, strict=False)
            torch.jit.save(net, str(folder / f"{kind}.pt"))
    return folder


@pytest.mark.parametrize("engine", of_kind("onnx"))
@pytest.mark.parametrize("kind", ["package", "momentum", "volume"])
def test_hand_made_networks_give_the_numbers_worked_out(engine, there, kind):
    there(engine)
    folder = DATA / f"tiny_{kind}"
    words = yaml.safe_load((folder / "rdf.yaml").read_text())
    image = np.load(folder / "test_input.npy")
    scaled = (image - image.min()) / (image.max() - image.min() + 1e-6)
    outputs = run_onnx(engine, folder / "weights.onnx", scaled.astype(np.float32))
    assert len(outputs) == len(words["outputs"]) == (3 if kind == "momentum" else 2)
    for found, output in zip(outputs, words["outputs"], strict=True):
        truth = np.load(folder / output["test_tensor"]["source"])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, truth, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("engine", "dtype"),
    with_some("onnx", (*TYPES, "uint16", "uint32", "uint64"), ("float32", "int64", "bool")),
)
def test_numbers_of_every_type_go_through_onnx_unchanged(engine, there, copier, dtype):
    there(engine)
    given = values(dtype, (3, 1, 4))
    for found in run_onnx(engine, copier(dtype, (3, 1, 4)), given):
        assert_same_bits(found, given)


@pytest.mark.parametrize(("engine", "shape"), with_some("onnx", SHAPES, SHAPES[::2]))
def test_arrays_of_every_shape_go_through_onnx_unchanged(engine, there, copier, shape):
    there(engine)
    given = values("float32", shape)
    for found in run_onnx(engine, copier("float32", shape), given):
        assert_same_bits(found, given)


@pytest.mark.parametrize("engine", of_kind("onnx"))
def test_order_and_bytes_of_the_array_in_memory_do_not_matter(engine, there, copier):
    there(engine)
    given = np.arange(12, dtype=">f4").reshape(3, 4).T
    found, _ = run_onnx(engine, copier("float32", (4, 3)), given)
    np.testing.assert_array_equal(found, given)


@pytest.mark.parametrize("engine", of_kind("torchscript"))
def test_arrays_of_every_type_and_shape_go_through_torchscript_unchanged(engine, there, scripts):
    there(engine)
    given = [values(dtype, (3, 1, 4)) for dtype in (*TYPES, "float16")]
    given += [values("float32", shape) for shape in SHAPES]
    answers = run_images(engine, scripts / "copy.pt", given)
    for (first, second), array in zip(answers, given, strict=True):
        assert_same_bits(first, array)
        assert_same_bits(second, array.reshape(-1))


@pytest.mark.parametrize("engine", of_kind("onnx"))
def test_several_images_at_once_give_what_each_gives_alone(engine, there):
    there(engine)
    model = DATA / "tiny_package" / "weights.onnx"
    images = [values("int16", (1, 1, *space)).astype(np.float32) for space in ((4, 6), (8, 2))]
    answers = run_images(engine, model, images)
    for outputs, image in zip(answers, images, strict=True):
        alone = run_onnx(engine, model, image)
        assert len(outputs) == len(alone)
        for found, truth in zip(outputs, alone, strict=True):
            assert_same_bits(found, truth)
    assert run_images(engine, model, []) == []
    with pytest.raises(PackageError) as error:
        run_images(engine, model, [*images, np.zeros((1, 3, 8, 8), np.float32)])
    assert str(error.value).startswith(f"{model.resolve()}: {engine.name} cannot run it (")


def test_an_engine_that_answers_for_some_images_alone_is_not_believed(fake, tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(b"x")
    engine = fake('print(\'{"engine": "1", "stage": "run", "outputs": []}\')')
    with pytest.raises(PackageError) as error:
        run_images(engine, model, [np.zeros(1), np.zeros(2)])
    assert str(error.value) == (
        f"{model}: Fake 1 cannot run it (it gave no answer): {asking.ADVICE['onnx']}"
    )


@pytest.mark.parametrize("engine", of_kind("torchscript"))
@pytest.mark.parametrize(("kind", "factors"), [("one", [2]), ("list", [2, 3, 4])])
def test_one_output_and_a_list_of_them_are_both_a_list(engine, there, scripts, kind, factors):
    there(engine)
    given = values("int32", (2, 3)) // 8
    found = run_torchscript(engine, scripts / f"{kind}.pt", given)
    assert len(found) == len(factors)
    for output, factor in zip(found, factors, strict=True):
        assert_same_bits(output, given * np.int32(factor))


@pytest.mark.parametrize("engine", [*of_kind("onnx"), *of_kind("torchscript")])
def test_every_engine_computes_an_exported_network(engine, there, tiny_export):
    there(engine)
    torch = pytest.importorskip("torch")
    from spoco_zoo.packaging.graphs import read_torchscript

    folder, _ = tiny_export
    image = values("int16", (1, 1, 37, 53)).astype(np.float32) / 2**14
    with torch.no_grad():
        truth = [
            t.numpy()
            for t in read_torchscript(folder / "weights_torchscript.pt")(torch.from_numpy(image))
        ]
    if engine.kind == "onnx":
        outputs = run_onnx(engine, folder / "weights.onnx", image)
    else:
        outputs = run_torchscript(engine, folder / "weights_torchscript.pt", image)
    assert [o.shape for o in outputs] == [t.shape for t in truth]
    for found, right in zip(outputs, truth, strict=True):
        assert float(np.abs(found - right).max()) < 1e-4


@pytest.mark.parametrize("engine", [*of_kind("onnx"), *of_kind("torchscript")])
@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_a_damaged_file_is_one_sentence(engine, there, tiny_export, tmp_path, damage):
    there(engine)
    onnx = engine.kind == "onnx"
    model = tmp_path / "model"
    whole = (tiny_export[0] / ("weights.onnx" if onnx else "weights_torchscript.pt")).read_bytes()
    model.write_bytes(
        {"cut": whole[: len(whole) // 2], "noise": b"\xff" * 999, "empty": b""}[damage]
    )
    with pytest.raises(PackageError) as error:
        (run_onnx if onnx else run_torchscript)(engine, model, np.zeros((1, 1, 32, 32), np.float32))
    start, end = f"{model}: {engine.name} cannot open it (", f"): {asking.ADVICE[engine.kind]}"
    said = str(error.value)
    assert said.startswith(start)
    assert said.endswith(end)
    assert 10 < len(said) - len(start) - len(end) <= 300
    assert "\n" not in said


@pytest.mark.parametrize("engine", of_kind("onnx"))
@pytest.mark.parametrize("newer", ["IR version", "opset"])
def test_a_newer_form_of_onnx_is_refused_by_the_engines_of_fiji(engine, there, copier, newer):
    onnx = pytest.importorskip("onnx")
    there(engine)
    path = copier("float32", (2,))
    model = onnx.load(path)
    if newer == "opset":
        model.opset_import[0].version = 18
    else:
        model.ir_version = 10
    onnx.save(model, path)
    if not engine.from_cache:
        assert len(run_onnx(engine, path, values("float32", (2,)))) == 2
        return
    with pytest.raises(PackageError) as error:
        run_onnx(engine, path, values("float32", (2,)))
    assert str(error.value).startswith(f"{path}: {engine.name} cannot open it (")
    reason = str(error.value).partition(asking.ADVICE["onnx"])[0]
    assert ("till opset 17" if newer == "opset" else "IR version") in reason


@pytest.mark.parametrize("engine", [*of_kind("onnx"), *of_kind("torchscript")])
def test_an_array_of_another_shape_is_refused_while_running(engine, there, tiny_export):
    there(engine)
    onnx = engine.kind == "onnx"
    model = tiny_export[0] / ("weights.onnx" if onnx else "weights_torchscript.pt")
    with pytest.raises(PackageError) as error:
        (run_onnx if onnx else run_torchscript)(engine, model, np.zeros((1, 3, 8, 8), np.float32))
    assert str(error.value).startswith(f"{model}: {engine.name} cannot run it (")


@pytest.mark.parametrize("engine", of_kind("torchscript"))
def test_a_script_brings_operators_that_libtorch_does_not_know(engine, there, tmp_path):
    there(engine)
    torch = pytest.importorskip("torch")
    import warnings

    class Net(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.interpolate(x, scale_factor=2.0)

    image, path = values("int8", (1, 1, 3, 4)).astype(np.float32), tmp_path / "net.pt"
    for make in (torch.jit.script, lambda net: torch.jit.trace(net, torch.from_numpy(image))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(make(Net()), str(path))
        if engine.from_cache and make is torch.jit.script:
            with pytest.raises(PackageError) as error:
                run_torchscript(engine, path, image)
            assert str(error.value).startswith(
                f"{path}: {engine.name} cannot open it (Unknown builtin op: aten::"
            )
        else:
            (found,) = run_torchscript(engine, path, image)
            np.testing.assert_array_equal(found, image.repeat(2, axis=2).repeat(2, axis=3))


def test_an_output_that_the_old_engines_cannot_hand_over_is_refused(there, copier, scripts):
    halves, complexes = copier("float16", (2,)), scripts / "complex.pt"
    for engine in ENGINES:
        if not engine.from_cache or engine.kind == "bioimageio":
            continue
        there(engine)
        run, model = (run_onnx, halves) if engine.kind == "onnx" else (run_torchscript, complexes)
        dtype = "float16" if engine.kind == "onnx" else "float32"
        with pytest.raises(PackageError) as error:
            run(engine, model, values(dtype, (2,)))
        assert str(error.value).startswith(f"{model}: {engine.name} cannot run it (")
        assert "not known to this runner" in str(error.value)


@pytest.mark.parametrize("engine", of_kind("torchscript"))
def test_outputs_that_are_no_tensors_are_refused(engine, there, scripts):
    there(engine)
    with pytest.raises(PackageError) as error:
        run_torchscript(engine, scripts / "words.pt", values("float32", (2,)))
    assert f"{engine.name} cannot run it (" in str(error.value)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            "import os; os.kill(os.getpid(), 9)",
            "it was ended by SIGKILL, perhaps for want of memory",
        ),
        ("import time; time.sleep(60)", "it did not end within 1 s"),
        ("pass", "it gave no answer"),
        ("raise MemoryError('too large')", "MemoryError: too large"),
        ('print(\'{"error": "\\\\n why. \\\\n at"}\'); raise SystemExit(1)', "why"),
    ],
)
def test_an_engine_that_dies_is_a_sentence_of_ours(fake, tmp_path, code, reason):
    model = tmp_path / "model.onnx"
    model.write_bytes(b"x")
    with pytest.raises(PackageError) as error:
        run_onnx(fake(code), model, np.zeros(1, np.float32), timeout=1.0)
    assert str(error.value) == (
        f"{model}: Fake 1 cannot open it ({reason}): {asking.ADVICE['onnx']}"
    )


def test_an_engine_of_another_version_than_its_name_is_not_believed(fake, tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(b"x")
    with pytest.raises(PackageError) as error:
        run_onnx(fake('print(\'{"engine": "2", "outputs": []}\')'), model, np.zeros(1))
    assert str(error.value) == "Fake 1 says it is 2: expected 1; install it anew"


def test_what_is_missing_or_of_another_kind_is_said_first(fake, tmp_path):
    with pytest.raises(PackageError) as error:
        run_onnx(fake(""), tmp_path / "none.onnx", np.zeros(1))
    assert str(error.value) == f"{tmp_path}/none.onnx: is not there: give the file of the weights"
    with pytest.raises(MissingExtraError) as missing:
        run_onnx(fake("", there=False), tmp_path, np.zeros(1))
    assert str(missing.value) == "Fake 1 is not installed: run spoco-zoo engines --install"
    with pytest.raises(ValueError, match=r"^Fake 1 opens onnx, not torchscript$"):
        run_torchscript(fake(""), tmp_path, np.zeros(1))


# --- memory


def test_the_peak_is_that_of_the_engine_and_grows_with_the_image(there, copier):
    (engine,) = (e for e in ENGINES if e.kind == "onnx" and not e.from_cache)
    there(engine)
    held = np.ones(60_000_000)  # 480 MB of ours, which a child must not be charged with
    peaks = [
        measure_peak(engine, copier("float32", (size,)), np.zeros(size, np.float32))
        for size in (10, 25_000_000)
    ]
    if peaks[0] is None:
        pytest.skip("this system does not tell")
    assert peaks[0] < held.nbytes
    assert peaks[1] > peaks[0] + 200_000_000  # two outputs and an input of 100 MB each


def test_an_engine_that_does_not_tell_its_peak_gives_none(fake, tmp_path):
    (tmp_path / "weights").write_bytes(b"")
    silent = fake("import json; print(json.dumps({'engine': '1', 'outputs': []}))")
    assert measure_peak(silent, tmp_path / "weights", np.zeros(1)) is None
