"""Make the networks of packages of others: python tests/data/make_foreign_networks.py

Their answer can be worked out on paper. For grey x:

    boundaries.onnx      (b, 1, y, x) to (b, 2, y, x): foreground is 1 where x > 20, boundary is
                         half the difference of the largest and least x within one pixel, over 100
    labels.onnx          (b, 1, y, x) to int32 (b, 1, y, x): x / 10, cut off behind the point
    channels_last.onnx   (y, x, 2) to (y, x, 3): the sum of the channels, and the channels

onnx is needed here and nowhere in the tests: what this writes is kept beside it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

HERE = Path(__file__).resolve().parent / "foreign"


def main() -> None:
    """Write every network."""
    HERE.mkdir(exist_ok=True)
    window = {"kernel_shape": [3, 3], "pads": [1] * 4}
    write(
        "boundaries",
        [
            helper.make_node("Greater", ["image", "twenty"], ["above"]),
            helper.make_node("Cast", ["above"], ["foreground"], to=TensorProto.FLOAT),
            helper.make_node("MaxPool", ["image"], ["most"], **window),
            helper.make_node("Neg", ["image"], ["negative"]),
            helper.make_node("MaxPool", ["negative"], ["least"], **window),
            helper.make_node("Add", ["most", "least"], ["difference"]),
            helper.make_node("Div", ["difference", "two_hundred"], ["part"]),
            helper.make_node("Clip", ["part", "zero", "one"], ["boundary"]),
            helper.make_node("Concat", ["foreground", "boundary"], ["maps"], axis=1),
        ],
        {"twenty": 20.0, "two_hundred": 200.0, "zero": 0.0, "one": 1.0},
        (["b", 1, "y", "x"], "maps", TensorProto.FLOAT, ["b", 2, "y", "x"]),
    )
    write(
        "labels",
        [
            helper.make_node("Div", ["image", "ten"], ["part"]),
            helper.make_node("Cast", ["part"], ["ids"], to=TensorProto.INT32),
        ],
        {"ten": 10.0},
        (["b", 1, "y", "x"], "ids", TensorProto.INT32, ["b", 1, "y", "x"]),
    )
    write(
        "channels_last",
        [
            helper.make_node("ReduceSum", ["image", "last"], ["sum"], keepdims=1),
            helper.make_node("Concat", ["sum", "image"], ["out"], axis=2),
        ],
        {"last": np.array([2], np.int64)},
        (["y", "x", 2], "out", TensorProto.FLOAT, ["y", "x", 3]),
    )


def write(
    name: str,
    nodes: Sequence[NodeProto],
    numbers: dict[str, float | np.ndarray],
    ends: tuple[list[str | int], str, int, list[str | int]],
) -> None:
    """Write one network as opset 17, IR 8."""
    shape, output, kind, output_shape = ends
    constants = [
        onnx.numpy_helper.from_array(
            np.asarray(value, np.float32) if isinstance(value, float) else value, key
        )
        for key, value in numbers.items()
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, kind, output_shape)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    (HERE / f"{name}.onnx").write_bytes(model.SerializeToString())


if __name__ == "__main__":
    main()
