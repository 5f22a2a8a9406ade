"""The dense steps of clustering as ONNX graphs: opset 17, any number of pixels and numbers.

They do what `spoco_zoo.pixels.HostPixels` does, where the embedding is; `trial` is another, with
which `spoco_zoo.providers` tries a device. `run` carries them as files, since it is installed
without onnx; this module writes those files, and a test keeps both the same:

    python -m spoco_zoo.packaging.dense
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from spoco_zoo.packaging.graphs import OPSET

FOLDER = Path(__file__).parents[1] / "graphs"
_FLOAT, _INT, _BOOL = int(TensorProto.FLOAT), int(TensorProto.INT64), int(TensorProto.BOOL)
_Described = tuple[int, Sequence[str | int]]  # type and shape of a tensor
_LARGEST = float(np.finfo(np.float32).max)


class _Graph:
    """Nodes in the order in which they are added, and constants by value."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, kind: str, *inputs: str, words: Mapping[str, Any] | None = None) -> str:
        """Add a node with one output and these attributes; its name."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **(words or {})))
        return name

    def hold(self, value: np.ndarray | float) -> str:
        """Add a constant; its name."""
        name = f"constant_{len(self.constants)}"
        array = np.asarray(value, np.float32) if isinstance(value, float) else value
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def finish(
        self,
        name: str,
        inputs: dict[str, _Described],
        output: tuple[str, int, Sequence[str | int]],
    ) -> bytes:
        """The model as bytes; `output` is the last node, its type and its shape."""
        last, kind, shape = output
        self.nodes.append(helper.make_node("Identity", [last], ["answer"]))
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(n, *described) for n, described in inputs.items()],
            [helper.make_tensor_value_info("answer", kind, shape)],
            self.constants,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8
        )
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))


def build_graphs() -> dict[str, bytes]:
    """All graphs by the names of their files."""
    kinds = {
        "points": _points,
        "squares": _squares,
        "nearest": _nearest,
        "steps": _steps,
        "finite": _finite,
        "trial": _trial,
    }
    return {
        f"{kind}_{n_axes}d.onnx": build(n_axes)
        for kind, build in kinds.items()
        for n_axes in (2, 3)
    }


_PLACES = (_INT, ["n"])
_CENTERS = (_FLOAT, ["m", "e"])


def _whole(n_axes: int) -> _Described:
    return _FLOAT, [1, "e", *(f"whole_{axis}" for axis in "zyx"[-n_axes:])]


def _gather(graph: _Graph) -> str:
    """Embeddings of the pixels at `places`, (n, e)."""
    flat = graph.add("Reshape", "embedding", graph.hold(np.array([0, 0, -1])))
    flat = graph.add("Squeeze", flat, graph.hold(np.array([0])))
    return graph.add(
        "Transpose", graph.add("Gather", flat, "places", words={"axis": 1}), words={"perm": [1, 0]}
    )


def _points(n_axes: int) -> bytes:
    graph = _Graph()
    return graph.finish(
        f"points_{n_axes}d",
        {"embedding": _whole(n_axes), "places": _PLACES},
        (_gather(graph), _FLOAT, ["n", "e"]),
    )


def _squares(n_axes: int) -> bytes:
    graph = _Graph()
    own = graph.add("Gather", "centers", "index", words={"axis": 0})
    offset = graph.add("Sub", _gather(graph), own)
    return graph.finish(
        f"squares_{n_axes}d",
        {"embedding": _whole(n_axes), "places": _PLACES, "index": _PLACES, "centers": _CENTERS},
        (graph.add("ReduceSumSquare", offset, words={"axes": [1], "keepdims": 0}), _FLOAT, ["n"]),
    )


def _nearest(n_axes: int) -> bytes:
    graph = _Graph()
    # far from 0, distances lose digits
    origin = graph.add("ReduceMean", "centers", words={"axes": [0], "keepdims": 1})
    centers = graph.add("Sub", "centers", origin)
    points = graph.add("Sub", _gather(graph), origin)
    products = graph.add("MatMul", centers, graph.add("Transpose", points, words={"perm": [1, 0]}))
    lengths = graph.add("ReduceSumSquare", points, words={"axes": [1], "keepdims": 0})
    squares = graph.add("ReduceSumSquare", centers, words={"axes": [1], "keepdims": 1})
    doubled = graph.add("Mul", products, graph.hold(-2.0))
    distances = graph.add("Add", graph.add("Add", doubled, lengths), squares)
    best = graph.add("ArgMin", distances, words={"axis": 0, "keepdims": 0})
    shortest = graph.add("ReduceMin", distances, words={"axes": [0], "keepdims": 0})
    # rounding must not cut off the member that a reach was measured on
    largest = graph.add("ReduceMax", squares, words={"axes": [0, 1], "keepdims": 0})
    slack = graph.add("Mul", largest, graph.hold(float(8 * np.finfo(np.float32).eps)))
    within = graph.add("Add", graph.add("Mul", "reach", "reach"), slack)
    reached = graph.add(
        "LessOrEqual", shortest, graph.add("Gather", within, best, words={"axis": 0})
    )
    return graph.finish(
        f"nearest_{n_axes}d",
        {
            "embedding": _whole(n_axes),
            "places": _PLACES,
            "centers": _CENTERS,
            "reach": (_FLOAT, ["m"]),
        },
        (graph.add("Where", reached, best, graph.hold(np.array(-1))), _INT, ["n"]),
    )


def _steps(n_axes: int) -> bytes:
    graph = _Graph()
    space: list[str | int] = list("zyx"[-n_axes:])
    axes = np.arange(2, 2 + n_axes)
    part = graph.add("Slice", "embedding", "starts", "stops", graph.hold(axes))
    far = graph.hold(_LARGEST)
    worst = ""
    for axis in range(n_axes):
        first, last = graph.hold(np.array([0])), graph.hold(np.array([-1]))
        second, end = graph.hold(np.array([1])), graph.hold(np.array([2**31 - 1]))

        def cut(name: str, start: str, stop: str, axis: int, graph: _Graph = graph) -> str:
            return graph.add("Slice", name, start, stop, graph.hold(np.array([axis])))

        before, after = cut(part, first, last, axis + 2), cut(part, second, end, axis + 2)
        squares = graph.add(
            "ReduceSumSquare",
            graph.add("Sub", after, before),
            words={"axes": [0, 1], "keepdims": 0},
        )
        both = graph.add("And", cut("mask", first, last, axis), cut("mask", second, end, axis))
        step = graph.add("Where", both, graph.add("Sqrt", squares), far)
        pads = np.zeros((2, 2, n_axes), np.int64)  # of two arrays: starts and ends
        pads[0, 1, axis] = pads[1, 0, axis] = 1
        forward, back = (graph.add("Pad", step, graph.hold(pad.ravel()), far) for pad in pads)
        nearer = graph.add("Min", forward, back)
        alone = graph.add("Less", nearer, far)
        nearer = graph.add("Where", alone, nearer, graph.hold(0.0))
        worst = graph.add("Max", worst, nearer) if worst else nearer
    return graph.finish(
        f"steps_{n_axes}d",
        {
            "embedding": _whole(n_axes),
            "starts": (_INT, [n_axes]),
            "stops": (_INT, [n_axes]),
            "mask": (_BOOL, space),
        },
        (worst, _FLOAT, space),
    )


def _finite(n_axes: int) -> bytes:
    """0 times everything: 0, or not a number."""
    graph = _Graph()
    axes = np.arange(2, 2 + n_axes)
    part = graph.add("Slice", "embedding", "starts", "stops", graph.hold(axes))
    nothing = graph.add("Mul", part, graph.hold(0.0))
    total = graph.add("ReduceSum", nothing, words={"keepdims": 0})
    return graph.finish(
        f"finite_{n_axes}d",
        {
            "embedding": _whole(n_axes),
            "starts": (_INT, [n_axes]),
            "stops": (_INT, [n_axes]),
        },
        (total, _FLOAT, []),
    )


def _trial(n_axes: int) -> bytes:
    """A convolution and a product of matrices: what networks spend their time in.

    A provider may start and still lack the library of one of them.
    """
    graph = _Graph()
    space: list[str | int] = list("zyx"[-n_axes:])
    kernel: list[str | int] = [f"kernel_{axis}" for axis in space]
    inner: list[str | int] = [f"inner_{axis}" for axis in space]
    return graph.finish(
        f"trial_{n_axes}d",
        {
            "image": (_FLOAT, [1, 1, *space]),
            "kernel": (_FLOAT, [1, 1, *kernel]),
            "matrix": (_FLOAT, [inner[-1], "m"]),
        },
        (
            graph.add("MatMul", graph.add("Conv", "image", "kernel"), "matrix"),
            _FLOAT,
            [1, 1, *inner[:-1], "m"],
        ),
    )


if __name__ == "__main__":
    for file_name, content in build_graphs().items():
        (FOLDER / file_name).write_bytes(content)
