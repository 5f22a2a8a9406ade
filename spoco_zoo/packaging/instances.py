"""The network with clustering inside: an image in, a label image out, for desktops without Python.

The clustering is that of `run`, written once more as TorchScript (`script_modes` and
`script_windows`), because a graph holds no NumPy. The network is traced and the rest is compiled:
a compiled network would pull operators into the file that libtorch 2.0 does not know.
"""

import ast
import itertools
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spoco_zoo.errors import SettingError
from spoco_zoo.foreground import Everywhere, External, Head, Prototype
from spoco_zoo.fragments import lattice_steps, most_thinning
from spoco_zoo.packaging import script_modes, script_windows
from spoco_zoo.packaging.graphs import quiet
from spoco_zoo.recipe import MeanShift, Recipe
from spoco_zoo.training.net import PackagedUNet

OUTPUT = "instance_segmentation"  # the name that QuPath looks for

_FIND = """
def {name}(self, image):
    outputs = self.net(image)
    embedding = outputs[0][0]{to_volume}
    varies = image[0].reshape(image.size(1), -1)
    varies = (torch.amax(varies, 1) > torch.amin(varies, 1)).to(torch.int64).sum() > 0
    foreground = ({foreground}) & varies
    core = {core}
    labels = cluster(
        embedding, foreground, core, self.window, self.margin, self.around, {sides},
        self.lattice, {bandwidth}, {min_size}, {fill_reach},
    )
    return labels.unsqueeze(0){to_channel}
"""


def check_recipe(recipe: Recipe) -> None:
    """Refuse a recipe that cannot go into a graph.

    Raises:
        SettingError: The method is not mean-shift, merges by a distance of its own, or the
            foreground comes from a mask.
    """
    clustering = recipe.clustering
    if not isinstance(clustering, MeanShift):
        raise SettingError(
            f"clustering.method is {clustering.method}: a graph holds mean_shift alone; fit it, "
            "or leave out the instances flavour"
        )
    if clustering.merge_distance:
        raise SettingError(
            f"clustering.merge_distance is {clustering.merge_distance}: expected 0 in a graph; "
            "fit without it, or leave out the instances flavour"
        )
    if isinstance(recipe.foreground, External):
        raise SettingError(
            "the foreground rule is mask: a graph is given an image alone; train a foreground "
            "head, or leave out the instances flavour"
        )


def build_instances(
    net: PackagedUNet, recipe: Recipe, example: Tensor, forward: str | None = None
) -> Any:  # noqa: ANN401
    """Put clustering behind a network.

    Args:
        net: The network, in evaluation mode.
        recipe: How instances are made.
        example: An image `(1, c, *space)` to trace on, best of an odd size.
        forward: TorchScript of a method `forward` that calls `self.find_instances(image)`; the
            module is called with an image where left out.

    Returns:
        A script module from one normalised image `(1, c, *space)` to labels `(1, 1, *space)`,
        int64, 0 for background, instances from 1 on. Labels are those of `segment`, numbered as
        they were met before pixels without an instance took that of a neighbour.

    Raises:
        SettingError: The recipe cannot go into a graph.
    """
    check_recipe(recipe)
    n_axes = net.embedding_net.n_axes
    with quiet(), torch.no_grad():
        held = nn.Module()
        held.net = torch.jit.trace(net, example, check_trace=False)  # type: ignore[no-untyped-call]
        for name, value in _constants(recipe, n_axes).items():
            held.register_buffer(name, value)
        rule = recipe.foreground
        if isinstance(rule, Prototype):
            center = torch.tensor(rule.center).reshape(-1, 1, 1, 1)
            held.register_buffer("center", center)
        cluster = _compile().cluster  # noqa: F841 - the text of `_FIND` finds it by this name
        assert isinstance(recipe.clustering, MeanShift)
        foreground, core = _write_rule(rule, "" if n_axes == 3 else ".unsqueeze(1)")
        module: Any = torch.jit.script(held)
        method = "forward" if forward is None else "find_instances"
        module.define(
            _FIND.format(
                name=method,
                sides=2 * n_axes,
                to_volume="" if n_axes == 3 else ".unsqueeze(1)",
                to_channel=".unsqueeze(0)" if n_axes == 3 else "",
                foreground=foreground,
                core=core,
                bandwidth=float(recipe.clustering.bandwidth),
                min_size=recipe.min_size,
                fill_reach=recipe.fill_reach,
            )
        )
        # a file holds the methods of modules and no functions, so they become part of the method
        torch._C._jit_pass_inline(getattr(module, method).graph)  # noqa: SLF001
        if forward is not None:
            module.define(forward)
        return module.eval()


def _write_rule(rule: Head | Prototype | Everywhere | External, to_volume: str) -> tuple[str, str]:
    """Foreground and core of a rule, as TorchScript."""
    match rule:
        case Head(threshold=threshold, core_threshold=core):
            probability = f"outputs[1][0]{to_volume}[0]"
            inside = f"foreground & ({probability} >= {core})" if core else "foreground"
            return f"{probability} >= {threshold}", inside
        case Prototype(radius=radius):
            squares = "((embedding - self.center) * (embedding - self.center)).sum(0)"
            return f"{squares} > {radius * radius}", "foreground"
        case _:
            return "embedding[0] == embedding[0]", "foreground"


@cache
def _compile() -> Any:  # noqa: ANN401 - torch has no type for it
    """Compile the functions of the script."""
    texts = [
        Path(str(file.__file__)).read_text(encoding="utf-8")
        for file in (script_modes, script_windows)
    ]
    functions = [
        ast.get_source_segment(text, node)
        for text in texts
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef)
    ]
    return torch.jit.CompilationUnit("\n\n".join(map(str, functions)) + "\n")


def _constants(recipe: Recipe, n_axes: int) -> dict[str, Tensor]:
    """What the script is given beside an image: a volume of one slice stands for an image."""
    flat = 3 - n_axes
    windows, margins = recipe.windows(n_axes), recipe.margins(n_axes)
    around = [
        offset
        for offset in itertools.product((-1, 0, 1), repeat=3)
        if any(offset) and not any(offset[:flat])
    ]
    # those that share a side come first: before and after along each axis
    around.sort(key=lambda offset: (sum(map(abs, offset)), [-abs(step) for step in offset], offset))
    most = most_thinning(math.prod(w + 2 * m for w, m in zip(windows, margins, strict=True)))
    steps = [(0,) * 3, *((0,) * flat + lattice_steps(n, n_axes) for n in range(1, most + 1))]
    return {
        "window": torch.tensor((1,) * flat + windows),
        "margin": torch.tensor((1,) * flat + margins),
        "around": torch.tensor(around),
        "lattice": torch.tensor(steps),
    }
