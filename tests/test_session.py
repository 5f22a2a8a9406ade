"""One package on one device: the stored answer, or a sentence that says why not."""

import ctypes
import logging
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from spoco_zoo import session as room
from spoco_zoo.errors import DeviceError, MissingExtraError, PackageError, SettingError
from spoco_zoo.normalization import fit_affine
from spoco_zoo.package import load_package
from spoco_zoo.session import EmbeddingSession, convert_to_half, find_gpu
from spoco_zoo.simulation import simulate_nuclei

SHIPPED = Path(__file__).resolve().parent.parent / "weights" / "nuclei-2d"
OFFERS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def reason_of(call):
    """First line of what ONNX Runtime itself says."""
    with pytest.raises(Exception) as error:  # noqa: PT011 - its errors share no class
        call()
    return str(error.value).splitlines()[0]


def plain_session(content):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("kind", ["package", "momentum", "volume"])
@pytest.mark.parametrize("threads", [None, 1])
def test_the_test_image_gives_the_stored_outputs(load_tiny, kind, threads):
    package = load_tiny(kind)
    image = np.load(package.location / "test_input.npy")[0]
    with EmbeddingSession(package, "cpu", threads) as session:
        found = session.embed(fit_affine(image, package.normalization).apply(image))
    given = {"embedding": found.embedding, "foreground": found.probability[None]}
    if found.momentum_embedding is not None:
        given["momentum_embedding"] = found.momentum_embedding
    assert tuple(given) == package.outputs
    for name, values in given.items():
        assert values.dtype == np.float32
        expected = np.load(package.location / f"test_{name}.npy")[0]
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("said", "threads", "expected"), [("1", None, 1), ("1", 2, 2)])
def test_threads_that_are_left_out_are_those_of_the_variable(
    load_tiny, monkeypatch, said, threads, expected
):
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    with EmbeddingSession(load_tiny("package"), "cpu", threads) as session:
        assert session._session.get_session_options().intra_op_num_threads == expected


def test_what_the_network_does_not_give_is_none(tiny_package, edit_rdf):
    def change(words):
        words["outputs"].pop()
        words["config"]["spoco_zoo"]["recipe"]["foreground"] = {"rule": "everywhere"}

    edit_rdf(tiny_package, change)
    with EmbeddingSession(load_package(tiny_package), "cpu") as session:
        found = session.embed(np.zeros((1, 4, 6), np.float32))
    assert found.embedding.shape == (2, 4, 6)
    assert found.probability is None
    assert found.momentum_embedding is None


def test_a_packed_package_gives_the_same_bits(tiny_package, zip_folder, tmp_path):
    packed = load_package(zip_folder(tiny_package, tmp_path / "packed.zip"))
    image = np.random.default_rng(0).random((1, 12, 14), np.float32)
    with (
        EmbeddingSession(packed, "cpu") as one,
        EmbeddingSession(load_package(tiny_package), "cpu") as other,
    ):
        assert (one.embed(image).embedding == other.embed(image).embedding).all()


def test_a_view_in_any_order_gives_the_same(load_tiny):
    image = np.random.default_rng(0).random((1, 12, 14), np.float32)
    with EmbeddingSession(load_tiny("package"), "cpu") as session:
        plain = session.embed(image).embedding
        turned = session.embed(np.asfortranarray(image)[:, ::-1][:, ::-1]).embedding
        wide = session.embed(image.astype(np.float64)).embedding
    assert (plain == turned).all()
    assert (plain == wide).all()


@pytest.mark.parametrize("kind", ["package", "momentum", "volume"])
def test_outputs_can_stay_where_they_were_computed(load_tiny, kind):
    package = load_tiny(kind)
    image = np.load(package.location / "test_input.npy")[0]
    with EmbeddingSession(package, "cpu") as session:
        expected = session.embed(image)
        values = session.embed_on_device(image)
    assert tuple(values) == package.outputs
    for value in values.values():
        assert value.device_name() == "cpu"
        assert value.data_type() == "tensor(float)"
    assert tuple(values["embedding"].shape()) == (1, *expected.embedding.shape)
    assert (values["embedding"].numpy()[0] == expected.embedding).all()
    assert (values["foreground"].numpy()[0, 0] == expected.probability).all()
    if package.has_momentum:
        assert (values["momentum_embedding"].numpy()[0] == expected.momentum_embedding).all()


def test_what_was_embedded_stays_when_the_next_tile_is(load_tiny):
    image = np.random.default_rng(0).random((1, 12, 14), np.float32)
    with EmbeddingSession(load_tiny("package"), "cpu") as session:
        found, values = session.embed(image), session.embed_on_device(image)
        before = found.embedding.copy()
        for _ in range(3):
            session.embed(np.ones_like(image))
    assert (found.embedding == before).all()
    assert (values["embedding"].numpy()[0] == before).all()


# --- memory


def test_every_session_has_an_arena_of_its_own(monkeypatch):
    offered = []
    monkeypatch.setattr(room, "_offer_arena", offered.append)
    options = onnxruntime.SessionOptions()
    with room._roomy_arena(options):
        assert offered == [-1, 2**31 - 1]
        assert options.get_session_config_entry("session.use_env_allocators") == "1"
    assert offered == [-1, 2**31 - 1, -1]  # so that no other session shares it


def test_an_arena_that_cannot_be_replaced_is_not_used(monkeypatch, load_tiny):
    """Older versions of ONNX Runtime take one for the whole process and never let it go."""
    offered = []

    def offer(_, config):
        offered.append(config.initial_chunk_size_bytes)
        if len(offered) > 1:
            raise RuntimeError("An allocator for this device has already been registered")

    monkeypatch.setattr(onnxruntime, "create_and_register_allocator", offer)
    options = onnxruntime.SessionOptions()
    with room._roomy_arena(options):
        pass
    assert offered == [-1, 2**31 - 1, -1]
    with pytest.raises(RuntimeError):
        options.get_session_config_entry("session.use_env_allocators")
    with EmbeddingSession(load_tiny("package"), "cpu") as session:
        assert session.embed(np.zeros((1, 2, 2), np.float32)).embedding.shape == (2, 2, 2)


# --- precision


@pytest.mark.parametrize("name", ["half", "Float16", ""])
def test_an_unknown_precision_is_refused(load_tiny, name):
    with pytest.raises(SettingError) as error:
        EmbeddingSession(load_tiny("package"), "cpu", precision=name)
    assert str(error.value) == f"precision is {name}: expected float32 or float16"


def test_float16_is_not_for_the_cpu(load_tiny):
    with pytest.raises(DeviceError) as error:
        EmbeddingSession(load_tiny("package"), "cpu", precision="float16")
    assert str(error.value) == (
        "precision is float16 on the device cpu, which does not compute in it: "
        "expected cuda; use precision float32"
    )


@pytest.mark.usefixtures("broken_gpu")
def test_float16_is_not_computed_on_the_cpu_instead(load_tiny, caplog):
    pytest.importorskip("onnx")
    with pytest.raises(DeviceError) as error:
        EmbeddingSession(load_tiny("package"), "auto", precision="float16")
    assert str(error.value).startswith("precision is float16 on the device cpu")
    assert caplog.messages == []


def elements_of(content):
    """Types of the inputs and outputs, and of the weights, of a network."""
    onnx = pytest.importorskip("onnx")
    graph = onnx.load_model_from_string(content).graph
    name = onnx.TensorProto.DataType.Name
    ends = [name(v.type.tensor_type.elem_type) for v in (*graph.input, *graph.output)]
    return set(ends), {name(tensor.data_type) for tensor in graph.initializer}


@pytest.mark.parametrize("kind", ["package", "momentum", "volume"])
def test_half_a_tiny_network_gives_nearly_the_same(load_tiny, kind):
    pytest.importorskip("onnx")
    package = load_tiny(kind)
    content = package.read("weights.onnx")
    half = convert_to_half(content)
    assert elements_of(content) == ({"FLOAT"}, {"FLOAT"})
    assert elements_of(half)[0] == {"FLOAT"}
    assert "FLOAT16" in elements_of(half)[1]
    image = np.load(package.location / "test_input.npy")[0]
    image = fit_affine(image, package.normalization).apply(image)
    names = list(package.outputs)
    expected = plain_session(content).run(names, {"image": image[None]})
    found = plain_session(half).run(names, {"image": image[None]})
    for values, others in zip(found, expected, strict=True):
        assert values.dtype == np.float32
        assert values.shape == others.shape
        np.testing.assert_allclose(values, others, rtol=2e-3, atol=2e-3)


def test_half_the_shipped_network_gives_nearly_the_same():
    pytest.importorskip("onnx")
    package = load_package(SHIPPED)
    content = package.read("weights.onnx")
    half = convert_to_half(content)
    assert elements_of(half) == ({"FLOAT"}, {"FLOAT16"})
    assert len(half) < 0.6 * len(content)
    pixels = simulate_nuclei((96, 104), seed=0)[0][None]
    image = fit_affine(pixels, package.normalization).apply(pixels)[None]
    expected = plain_session(content).run(["embedding"], {"image": image})[0]
    found = plain_session(half).run(["embedding"], {"image": image})[0]
    assert np.median(np.abs(found - expected)) < 1e-3
    assert np.abs(found - expected).max() < 0.02  # of a bandwidth of 1.5


def test_float16_without_onnx_says_what_to_install(load_tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    content = load_tiny("package").read("weights.onnx")
    with pytest.raises(MissingExtraError) as error:
        convert_to_half(content)
    assert str(error.value) == "precision float16 needs onnx: pip install 'spoco-zoo[cuda]'"
    with pytest.raises(MissingExtraError):
        room._open(load_tiny("package"), "cuda", None, "float16")


def test_a_network_that_cannot_be_converted_is_told(load_tiny, monkeypatch):
    def fail(_):
        raise ValueError("words of the converter\nand more")

    monkeypatch.setattr(room, "convert_to_half", fail)
    package = load_tiny("package")
    with pytest.raises(PackageError) as error:
        room._open(package, "cuda", None, "float16")
    assert str(error.value) == (
        f"{package.location / 'weights.onnx'}: cannot be converted to float16 "
        "(words of the converter): use precision float32"
    )


@pytest.fixture
def open_half():
    """Open a float16 session on the CPU, which users may not."""
    pytest.importorskip("onnx")

    def open_session(package):
        session = EmbeddingSession(package, "cpu")
        session._session = room._open(package, "cpu", None, "float16")
        session.precision = "float16"
        return session

    return open_session


def test_a_float16_session_gives_float32(load_tiny, open_half):
    package = load_tiny("package")
    image = np.random.default_rng(0).random((1, 12, 14), np.float32)
    with open_half(package) as session, EmbeddingSession(package, "cpu") as other:
        found, expected = session.embed(image), other.embed(image)
    assert found.embedding.dtype == found.probability.dtype == np.float32
    np.testing.assert_allclose(found.embedding, expected.embedding, rtol=2e-3, atol=2e-3)


def test_numbers_beyond_float16_are_refused(load_tiny, open_half):
    package = load_tiny("package")
    image = np.full((1, 4, 6), 1e6, np.float32)
    with EmbeddingSession(package, "cpu") as session:
        assert np.isfinite(session.embed(image).embedding).all()
    with open_half(package) as session, pytest.raises(PackageError) as error:
        session.embed(image)
    assert str(error.value) == (
        f"{package.location}: output embedding is not finite in float16: the network computes "
        "with larger numbers than that holds; use precision float32"
    )


# --- devices


def test_cuda_is_a_promise(load_tiny):
    if OFFERS_CUDA and find_gpu():
        with EmbeddingSession(load_tiny("package"), "cuda") as session:
            assert session.device == "cuda"
        return
    with pytest.raises(DeviceError) as error:
        EmbeddingSession(load_tiny("package"), "cuda")
    assert str(error.value) == (
        "cuda was asked for, but no NVIDIA GPU with a driver is found: use --device cpu"
        if OFFERS_CUDA
        else "cuda was asked for, but ONNX Runtime was built without it: "
        "pip uninstall onnxruntime, then pip install 'spoco-zoo[cuda]', or use --device cpu"
    )


@pytest.mark.skipif(not (OFFERS_CUDA and find_gpu()), reason="there is no GPU")
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_on_cuda_the_outputs_stay_there(precision):
    if precision == "float16":
        pytest.importorskip("onnx")
    package = load_package(SHIPPED)
    pixels = simulate_nuclei((96, 104), seed=0)[0][None]
    image = fit_affine(pixels, package.normalization).apply(pixels)
    with EmbeddingSession(package, "cpu") as session:
        expected = session.embed(image)
    with EmbeddingSession(package, "cuda", precision=precision) as session:
        found, values = session.embed(image), session.embed_on_device(image)
        assert {value.device_name() for value in values.values()} == {"cuda"}
        assert {value.data_type() for value in values.values()} == {"tensor(float)"}
        assert (values["embedding"].numpy()[0] == found.embedding).all()
    most = 1e-3 if precision == "float32" else 0.02
    assert np.abs(found.embedding - expected.embedding).max() < most


@pytest.mark.parametrize("name", ["gpu", "CPU", "cuda:0", ""])
def test_an_unknown_device_is_refused(load_tiny, name):
    with pytest.raises(DeviceError) as error:
        EmbeddingSession(load_tiny("package"), name)
    assert str(error.value) == f"device is {name}: expected auto, cpu or cuda"


def test_cpu_is_the_cpu(load_tiny):
    with EmbeddingSession(load_tiny("package"), "cpu") as session:
        assert session.device == "cpu"


@pytest.mark.skipif(find_gpu(), reason="here auto may well be cuda")
def test_auto_is_the_cpu_where_no_gpu_is(load_tiny):
    with EmbeddingSession(load_tiny("package")) as session:
        assert session.device == "cpu"


@pytest.fixture
def broken_gpu(monkeypatch):
    """A driver that counts one GPU, and an ONNX Runtime that offers CUDA and cannot start it."""
    if find_gpu():
        pytest.skip("the GPU here may work")
    monkeypatch.setattr(ctypes, "CDLL", make_driver(gpus=1))
    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: offered)


def make_driver(gpus):
    """Stand in for the loader of libraries, with an NVIDIA driver that counts so many GPUs."""
    real = ctypes.CDLL

    class Driver:
        @staticmethod
        def cuInit(_):  # noqa: N802 - the name in the driver
            return 0

        @staticmethod
        def cuDeviceGetCount(pointer):  # noqa: N802
            pointer._obj.value = gpus
            return 0

    def load(name, *arguments, **options):
        is_driver = name in ("libcuda.so.1", "nvcuda.dll")
        return Driver() if is_driver else real(name, *arguments, **options)

    return load


@pytest.mark.parametrize(
    ("gpus", "offered", "reason"),
    [
        (0, True, "no NVIDIA GPU with a driver is found: use --device cpu"),
        (
            1,
            False,
            "ONNX Runtime was built without it: pip uninstall onnxruntime, "
            "then pip install 'spoco-zoo[cuda]', or use --device cpu",
        ),
    ],
)
def test_what_cuda_lacks_is_told_and_auto_does_without(
    load_tiny, monkeypatch, gpus, offered, reason
):
    monkeypatch.setattr(ctypes, "CDLL", make_driver(gpus))
    providers = ["CUDAExecutionProvider"] * offered + ["CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    assert find_gpu() == (gpus > 0)
    with pytest.raises(DeviceError) as error:
        EmbeddingSession(load_tiny("package"), "cuda")
    assert str(error.value) == f"cuda was asked for, but {reason}"
    with EmbeddingSession(load_tiny("package"), "auto") as session:
        assert session.device == "cpu"


@pytest.mark.usefixtures("broken_gpu")
def test_a_gpu_that_cannot_start_is_an_error_where_it_was_asked_for(load_tiny):
    with pytest.raises(DeviceError) as error:
        EmbeddingSession(load_tiny("package"), "cuda")
    assert str(error.value) == (
        "cuda was asked for, but ONNX Runtime cannot start it: "
        "pip install 'spoco-zoo[cuda]', or use --device cpu"
    )


@pytest.mark.usefixtures("broken_gpu")
def test_auto_says_in_the_log_that_it_took_the_cpu_instead(load_tiny, caplog):
    with (
        caplog.at_level(logging.WARNING, "spoco_zoo"),
        EmbeddingSession(load_tiny("package")) as session,
    ):
        assert session.device == "cpu"
        assert session.embed(np.zeros((1, 2, 2), np.float32)).embedding.shape == (2, 2, 2)
    assert caplog.messages == ["the GPU cannot be used by ONNX Runtime; running on the CPU instead"]


# --- networks that are not what the description says


def test_a_closed_session_says_so(load_tiny):
    with EmbeddingSession(load_tiny("package"), "cpu") as session:
        pass
    with pytest.raises(PackageError) as error:
        session.embed(np.zeros((1, 2, 2), np.float32))
    assert str(error.value) == "Tiny: the session is closed: open a new one"
    with pytest.raises(PackageError):
        session.embed_on_device(np.zeros((1, 2, 2), np.float32))


@pytest.mark.parametrize("content", [b"", b"words", b"\x08\x08\x12"])
def test_weights_that_are_no_network_are_refused_though_their_hash_is_right(
    tiny_package, edit_rdf, content
):
    path = tiny_package / "weights.onnx"
    path.write_bytes(content)
    edit_rdf(tiny_package)
    with pytest.raises(PackageError) as error:
        EmbeddingSession(load_package(tiny_package), "cpu")
    reason = reason_of(lambda: plain_session(content))
    assert str(error.value) == (
        f"{path}: ONNX Runtime cannot open it ({reason}): export the package again"
    )


def test_half_a_network_is_refused(tiny_package, edit_rdf):
    path = tiny_package / "weights.onnx"
    content = path.read_bytes()[:-300]
    path.write_bytes(content)
    edit_rdf(tiny_package)
    with pytest.raises(PackageError) as error:
        EmbeddingSession(load_package(tiny_package), "cpu")
    reason = reason_of(lambda: plain_session(content))
    assert str(error.value) == (
        f"{path}: ONNX Runtime cannot open it ({reason}): export the package again"
    )


def test_weights_that_change_after_loading_are_not_opened(tiny_package):
    package = load_package(tiny_package)
    path = tiny_package / "weights.onnx"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(PackageError) as error:
        EmbeddingSession(package, "cpu")
    assert str(error.value).startswith(f"{path}: sha256 is ")
    assert str(error.value).endswith("the file was changed after export; export again")


def test_an_output_that_the_network_does_not_give_is_refused(tiny_package, edit_rdf):
    def change(words):
        words["outputs"].append(words["outputs"][0] | {"id": "momentum_embedding"})
        del words["outputs"][2]["axes"], words["outputs"][2]["test_tensor"]
        words["outputs"][2]["axes"] = [dict(axis) for axis in words["outputs"][0]["axes"]]
        words["outputs"][2]["axes"][1]["channel_names"] = ["a", "b"]

    edit_rdf(tiny_package, change)
    with pytest.raises(PackageError) as error:
        EmbeddingSession(load_package(tiny_package), "cpu")
    assert str(error.value) == (
        f"{tiny_package / 'weights.onnx'}: takes image and gives embedding, foreground: rdf.yaml "
        "says image and embedding, foreground, momentum_embedding; export the package again"
    )


def test_an_input_of_another_name_is_refused(tiny_package, edit_rdf):
    edit_rdf(tiny_package, lambda words: words["inputs"][0].update(id="picture"))
    with pytest.raises(PackageError) as error:
        EmbeddingSession(load_package(tiny_package), "cpu")
    assert str(error.value) == (
        f"{tiny_package / 'weights.onnx'}: takes image and gives embedding, foreground: rdf.yaml "
        "says picture and embedding, foreground; export the package again"
    )


def test_an_output_of_another_shape_is_refused(tiny_package, edit_rdf):
    def change(words):
        words["outputs"][0]["axes"][1]["channel_names"] = ["a", "b", "c"]

    edit_rdf(tiny_package, change)
    with (
        EmbeddingSession(load_package(tiny_package), "cpu") as session,
        pytest.raises(PackageError) as error,
    ):
        session.embed(np.zeros((1, 4, 6), np.float32))
    assert str(error.value) == (
        f"{tiny_package}: output embedding has shape (1, 2, 4, 6): "
        "expected (1, 3, 4, 6); export the package again"
    )


@pytest.mark.parametrize("shape", [(1, 5, 7), (2, 4, 6)])
def test_a_network_that_fails_is_told_with_the_shape(load_tiny, shape):
    package = load_tiny("package")
    image = np.zeros(shape, np.float32)
    plain = plain_session(package.read("weights.onnx"))
    binding = plain.io_binding()
    binding.bind_cpu_input("image", image[None])
    binding.bind_output("embedding", "cpu")
    reason = reason_of(lambda: plain.run_with_iobinding(binding))
    with EmbeddingSession(package, "cpu") as session, pytest.raises(PackageError) as error:
        session.embed(image)
    assert str(error.value) == (
        f"{package.location}: the network failed on shape {(1, *shape)} ({reason}): "
        "use smaller tiles, or export the package again"
    )


def test_weights_in_files_beside_the_network_are_not_read(tiny_package, edit_rdf, monkeypatch):
    """ONNX may point to other files, which no hash of ours would cover."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(tiny_package / "weights.onnx")
    eight = next(tensor for tensor in model.graph.initializer if tensor.name == "eight")
    eight.ClearField("float_data")
    for key, value in (("location", "beside.bin"), ("offset", "0"), ("length", "4")):
        eight.external_data.add(key=key, value=value)
    eight.data_location = onnx.TensorProto.EXTERNAL
    np.float32([8]).tofile(tiny_package / "beside.bin")
    (tiny_package / "weights.onnx").write_bytes(model.SerializeToString())
    edit_rdf(tiny_package)
    monkeypatch.chdir(tiny_package)
    with pytest.raises(PackageError) as error:
        load_package(tiny_package)
    assert str(error.value) == (
        f"{tiny_package / 'weights.onnx'}: keeps 1 of its weights in other files, 'eight' first: "
        "expected one ONNX file with all of them; save it again without external data"
    )


def test_no_weights_are_read_out_of_the_folder_of_the_program(tiny_package, monkeypatch):
    """ONNX Runtime itself reads them there, where a network comes to it as bytes."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(tiny_package / "weights.onnx")
    square = np.eye(64, dtype=np.float32)
    tensor = onnx.numpy_helper.from_array(square, "square")
    tensor.ClearField("raw_data")
    for key, value in (("location", "beside.bin"), ("length", str(square.nbytes))):
        tensor.external_data.add(key=key, value=value)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    model.graph.initializer.append(tensor)
    model.graph.node[3].input[0] = "mixed"  # of width 64
    model.graph.node.insert(0, onnx.helper.make_node("MatMul", ["image", "square"], ["mixed"]))
    monkeypatch.chdir(tiny_package)
    square.tofile("beside.bin")
    plain_session(model.SerializeToString())
    place = Path("net.onnx")
    with pytest.raises(PackageError) as error:
        room._start(model.SerializeToString(), place, "cpu", None)
    assert str(error.value).startswith("net.onnx: ONNX Runtime cannot open it (")
    assert "External data path" in str(error.value)
