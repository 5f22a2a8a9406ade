"""Make the hand-made packages of the tests: python tests/data/make_tiny_package.py

They stand for trained ones where torch is not installed, and their answer can be worked out on
paper. For grey x, scaled to 0..1 over the whole image:

    embedding            8 x, and a quarter of the largest x around the pixel (its context)
    foreground           sigmoid(50 (x - 0.1))
    momentum_embedding   8 min(x, 0.5), and the same context: greys above one half are one

The context is taken on a pooling grid and reaches over three pixels, so a tile without its halo
or off the grid gives other numbers; every operation is exact, so a right one gives equal bits.

    tiny_package    images; embedding and foreground
    tiny_momentum   images; momentum_embedding too, and a recipe that asks for it
    tiny_volume     volumes, pooled in y and x alone; embedding and foreground

onnx is needed here and nowhere in the tests: what this writes is kept beside it.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Write every package beside this file."""
    write_package(HERE / "tiny_package", "Tiny", n_axes=2, momentum=False)
    write_package(HERE / "tiny_momentum", "Tiny momentum", n_axes=2, momentum=True)
    write_package(HERE / "tiny_volume", "Tiny volume", n_axes=3, momentum=False)


def write_package(folder: Path, name: str, *, n_axes: int, momentum: bool) -> None:
    """Write one package: weights, a test image with its outputs, a card and the description."""
    folder.mkdir(exist_ok=True)
    (folder / "weights.onnx").write_bytes(make_graph(n_axes, momentum=momentum))
    image = make_image(n_axes)
    np.save(folder / "test_input.npy", image[None, None])
    for output, values in calculate(image, momentum=momentum).items():
        np.save(folder / f"test_{output}.npy", values[None])
    (folder / "README.md").write_text(f"# {name}\n\nMade by hand for tests.\n")
    names = sorted(path.name for path in folder.iterdir() if path.name != "rdf.yaml")
    files = {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in names}
    words = describe(name, files, n_axes, momentum=momentum)
    (folder / "rdf.yaml").write_text(yaml.safe_dump(words, sort_keys=False))


def make_graph(n_axes: int, *, momentum: bool) -> bytes:
    """Build the network as opset 17, IR 8."""
    pool = [2] * 2 if n_axes == 2 else [1, 2, 2]
    numbers = {
        "eight": 8.0,
        "quarter": 0.25,
        "fifty": 50.0,
        "tenth": 0.1,
        "half": 0.5,
        "scales": [1.0, 1.0, *map(float, pool)],
    }
    nodes = [
        helper.make_node("MaxPool", ["image"], ["pooled"], kernel_shape=pool, strides=pool),
        helper.make_node(
            "MaxPool", ["pooled"], ["wide"], kernel_shape=[3] * n_axes, pads=[1] * 2 * n_axes
        ),
        helper.make_node(
            "Resize",
            ["wide", "", "scales"],
            ["around"],
            mode="nearest",
            nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        ),
        helper.make_node("Mul", ["image", "eight"], ["grey"]),
        helper.make_node("Mul", ["around", "quarter"], ["context"]),
        helper.make_node("Concat", ["grey", "context"], ["embedding"], axis=1),
        helper.make_node("Sub", ["image", "tenth"], ["above"]),
        helper.make_node("Mul", ["above", "fifty"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["foreground"]),
    ]
    if momentum:
        nodes += [
            helper.make_node("Min", ["image", "half"], ["low"]),
            helper.make_node("Mul", ["low", "eight"], ["low_grey"]),
            helper.make_node("Concat", ["low_grey", "context"], ["momentum_embedding"], axis=1),
        ]
    space = list("zyx"[-n_axes:])
    outputs = {"embedding": 2, "foreground": 1} | ({"momentum_embedding": 2} if momentum else {})
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 1, *space])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", channels, *space])
            for name, channels in outputs.items()
        ],
        [
            helper.make_tensor(name, TensorProto.FLOAT, np.shape(value), np.ravel(value))
            for name, value in numbers.items()
            if momentum or name != "half"
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def make_image(n_axes: int) -> np.ndarray:
    """Draw a raw test image: three bars of different grey and a gradient, from 0 to 200."""
    plane = np.zeros((16, 20), np.float32)
    plane[2:14, 2:6], plane[2:14, 6:10], plane[4:12, 13:17] = 200, 120, 60
    plane[15] = np.arange(20)
    return plane if n_axes == 2 else np.stack([plane * 0.5, plane, plane[:, ::-1], plane])


def calculate(image: np.ndarray, *, momentum: bool) -> dict[str, np.ndarray]:
    """Work the outputs out with NumPy alone, as the drawing at the top says."""
    x = (image / (image.max() + 1e-6)).astype(np.float32)
    *deep, height, width = x.shape
    pooled = x.reshape(*deep, height // 2, 2, width // 2, 2).max(axis=(-3, -1))
    padded = np.pad(pooled, 1, constant_values=-np.inf)
    wide = np.lib.stride_tricks.sliding_window_view(padded, (3,) * x.ndim)
    wide = wide.max(axis=tuple(range(x.ndim, 2 * x.ndim)))
    context = np.float32(0.25) * wide.repeat(2, axis=-2).repeat(2, axis=-1)
    outputs = {
        "embedding": np.stack([8 * x, context]),
        "foreground": 1 / (1 + np.exp(-50 * (x[None] - np.float32(0.1)))),
    }
    if momentum:
        outputs["momentum_embedding"] = np.stack([8 * np.minimum(x, 0.5), context])
    return {name: values.astype(np.float32) for name, values in outputs.items()}


def describe(name: str, files: dict[str, str], n_axes: int, *, momentum: bool) -> dict[str, Any]:
    """Put down what spoco_zoo.package reads, and no more."""
    space = list("zyx"[-n_axes:])

    def tensor(name: str, channels: int, test: str) -> dict[str, Any]:
        return {
            "id": name,
            "axes": [
                {"type": "batch", "id": "batch"},
                {
                    "type": "channel",
                    "id": "channel",
                    "channel_names": [f"{name}{n}" for n in range(channels)],
                },
                *({"type": "space", "id": axis} for axis in space),
            ],
            "test_tensor": {"source": test, "sha256": files[test]},
        }

    outputs = {"embedding": 2, "foreground": 1} | ({"momentum_embedding": 2} if momentum else {})
    image = tensor("image", 1, "test_input.npy")
    image["preprocessing"] = [
        {"id": "scale_range", "kwargs": {"axes": space, "max_percentile": 100}},
        {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}},
    ]
    method = "consistency" if momentum else "mean_shift"
    return {
        "type": "model",
        "format_version": "0.5.4",
        "name": name,
        "inputs": [image],
        "outputs": [tensor(name, n, f"test_{name}.npy") for name, n in outputs.items()],
        "weights": {
            "onnx": {
                "source": "weights.onnx",
                "sha256": files["weights.onnx"],
                "opset_version": 17,
            }
        },
        "config": {
            "spoco_zoo": {
                "format": 1,
                "multiple_of": [2, 2] if n_axes == 2 else [1, 2, 2],
                "halo": [4, 4] if n_axes == 2 else [1, 4, 4],
                "crop": [32, 32] if n_axes == 2 else [8, 32, 32],
                "delta_var": 0.5,
                "delta_dist": 2.0,
                "recipe": {
                    "clustering": {"method": method, "bandwidth": 0.5},
                    "foreground": {"rule": "head", "threshold": 0.5},
                    "min_size": 4,
                    "fill_reach": 2,
                },
                "files": dict(files),
            }
        },
    }


if __name__ == "__main__":
    main()
