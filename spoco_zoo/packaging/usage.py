"""How programs use a package of each flavour, and where they stop: two chapters of its card.

What is said of programs was seen in the libraries that they bring; the programs themselves were
not at hand, and the card says so.
"""

import math
from collections.abc import Mapping

from spoco_zoo.foreground import Head
from spoco_zoo.packaging.boundaries import CORE
from spoco_zoo.packaging.description import package_id
from spoco_zoo.packaging.flavours import FlavourName
from spoco_zoo.packaging.memory import Memory
from spoco_zoo.packaging.run_folder import RunFacts

FIJI_NUMBERS = 50_331_648  # more in an input, and JDLL 0.6.1 and 0.6.3 never end

_USE: Mapping[FlavourName, tuple[str, ...]] = {
    "embeddings": (
        "On the command line, with this folder or its zip:",
        "",
        "```bash",
        "spoco-zoo run {id} images/ -o labels/ --overlay",
        "```",
        "",
        "In Python, on an array:",
        "",
        "```python",
        "import spoco_zoo",
        "",
        'labels = spoco_zoo.segment(image, spoco_zoo.load_package("{id}"))',
        "```",
        "",
        "Both cut large images into tiles by themselves and give label images: 0 is background, "
        "every instance has a number. `bioimageio.core` gives the embeddings.",
    ),
    "instances": (
        "- **Fiji** with deepImageJ 3: *Plugins > DeepImageJ > Install model manually* takes the "
        "zip, and *DeepImageJ Run* runs it. In a macro:",
        "",
        "  ```",
        '  run("DeepImageJ Run", "model_path={id} output_folder=/path/to/results");',
        "  ```",
        "",
        "  `model_path` is the id, or the folder of the model in `Fiji.app/models`. The labels are "
        "in the file that ends in `_instance_segmentation.tif`. *Image > Lookup Tables > Glasbey* "
        "tells instances apart; *Label image to ROIs* (BIOP, MorphoLibJ) makes ROIs of them. "
        "{channels}",
        "- **Python**: `bioimageio.core.predict` gives the labels of a whole image. Do not predict "
        "in blocks: every block counts from 1.",
        "- **Command line**: `spoco-zoo run` with the embeddings package of this network gives the "
        "same instances, for images of any size.",
    ),
    "boundaries": (
        "The output has these channels, in 0..1: {names}.",
        "",
        "- **ilastik**: *Neural Network Classification (Local)* opens the zip. It shows the "
        "channels as Label 1, 2, 3 in that order. Export *Probabilities*, then either",
        "  - *Boundary-based Segmentation with Multicut*, with the boundary as its input channel; "
        "or",
        "  - *Object Classification [Pixel Prediction Map]* with hysteresis: core is interior at "
        "{core}, final is foreground at {final}, objects of 10 pixels or more, *Don't merge "
        "objects*.",
        "- **Python**: `bioimageio.core.predict`, in blocks too.",
    ),
    "qupath": (
        "- **QuPath** 0.6 or newer with the InstanSeg extension: put this folder into the "
        "extension's model folder, choose it under *Local models*, select an annotation and run. "
        "Images are resampled to the pixel size that `rdf.yaml` states, so the image must know "
        "its own. Choose the CPU, or a GPU of NVIDIA: Apple's has no double precision, which the "
        "clustering uses.",
        "- **Elsewhere**: take the instances package of the same network.",
    ),
}

_LIMITS: Mapping[FlavourName, tuple[str, ...]] = {
    "embeddings": (),
    "instances": (
        "- An image is computed in one piece: labels of several pieces would collide.",
        "- Fiji: an image of more than {most} makes deepImageJ wait for ever, since its library "
        "stops at {numbers:,} numbers of input. Crop larger ones.",
        "- Clustering settings are part of the network and cannot be changed.",
        "- Fiji itself was not at hand: what was tried are the libraries that it brings.",
    ),
    "boundaries": (
        "- ilastik takes tiles of {tile} and normalises each by itself. {statistics}",
        "- At the border of an image its tiles begin off the pooling grid of the network; the "
        "proof says how far single pixels then differ, on noise.{cost}",
        "- ilastik itself was not at hand: what was tried are the libraries that it brings.",
    ),
    "qupath": (
        "- QuPath itself was not at hand: what was tried are the libraries that it brings.",
        "- It takes percentiles over all that is annotated, and the network's own statistics are "
        "of a tile: where a tile shows next to nothing, noise may be taken for instances.",
        "- Clustering settings are part of the network and cannot be changed.",
    ),
}

_OF_WHOLE = (
    "This network was trained with statistics of whole images, so a tile that shows much more, or "
    "much less, than the rest differs from the whole."
)
_FIXED = "This network was trained with fixed numbers, so that changes nothing."


def use_lines(run: RunFacts, flavour: FlavourName, names: tuple[str, ...] = ()) -> list[str]:
    """Say how programs use a flavour.

    Args:
        run: With the threshold that was fitted.
        flavour: Which.
        names: Of the channels of its output.
    """
    rule = run.recipe.foreground
    final = rule.threshold if isinstance(rule, Head) else 0.5
    channels = run.spec.net.in_channels or 1
    words = {
        "{id}": package_id(run.spec, flavour),
        "{core}": f"{CORE:g}",
        "{final}": f"{final:.2g}",
        "{names}": ", ".join(names),
        "{channels}": "Convert RGB to 8-bit first." if channels == 1 else "",
    }
    lines = []
    for line in _USE[flavour]:
        for word, value in words.items():
            line = line.replace(word, value)
        lines.append(line.rstrip())
    return lines


def limit_lines(run: RunFacts, flavour: FlavourName, memory: Memory | None) -> list[str]:
    """Say where a flavour stops: its network, the program, and the memory."""
    spec = run.spec
    n_axes, channels = spec.net.dimensions, spec.net.in_channels or 1
    side = int((FIJI_NUMBERS / channels) ** (1 / n_axes) + 1e-6)
    is_fixed = spec.data.normalization.id in ("fixed_zero_mean_unit_variance", "scale_linear")
    words = {
        "{most}": f"{' x '.join([str(side)] * n_axes)} {'pixels' if n_axes == 2 else 'voxels'}",
        "{numbers:,}": f"{FIJI_NUMBERS:,}",
        "{tile}": " x ".join([str({2: 512, 3: 64}[n_axes])] * n_axes),
        "{statistics}": _FIXED if is_fixed else _OF_WHOLE,
        "{cost}": "" if run.maps is None else " *Validation* says what both cost in instances.",
    }
    lines = [f"- {spec.card.limits}"]
    for line in _LIMITS[flavour]:
        for word, value in words.items():
            line = line.replace(word, value)
        lines.append(line)
    if memory is not None:
        lines.append(f"- Memory: {memory}. {_example(memory, flavour, n_axes)}")
    return lines


def _example(memory: Memory, flavour: FlavourName, n_axes: int) -> str:
    """What that is for one size that people have."""
    space = {2: (2048, 2048), 3: (64, 512, 512)}[n_axes]
    gigabytes = (memory.base_mb + memory.mb_per_megapixel * math.prod(space) / 1e6) / 1e3
    size = f"{' x '.join(map(str, space))} in one piece is about {gigabytes:.1f} GB"
    if flavour == "embeddings":
        return f"By that, {size}; `spoco-zoo run` takes tiles instead."
    return f"By that, {size}."
