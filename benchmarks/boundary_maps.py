"""What ilastik makes of boundary maps, against what `spoco-zoo run` makes of the embeddings.

    python benchmarks/boundary_maps.py weights/nuclei-2d weights/nuclei-2d-boundaries DATA/val
    python benchmarks/boundary_maps.py ... --json benchmarks/nuclei-2d/boundaries.json

The maps are thresholded as *Object Classification* does it (hysteresis: core is interior, final is
foreground, objects are not merged), and cut by a watershed on the boundary with cores as seeds, as
*Multicut* begins; both by scikit-image. The card tells the thresholds of interior, `CORE`, and of
foreground, that of the recipe; others are beside them. The last rows are of maps that were
computed as ilastik does it: in tiles of 512 (64 in volumes), grown to both sides and filled by
reflection, each normalised by itself.
With `--json` the rows that the card tells are kept, for `benchmarks/packages.py`.
"""

import argparse
import json
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean

import numpy as np
import skimage
from scipy import ndimage
from skimage.morphology import remove_small_objects
from skimage.segmentation import watershed

from spoco_zoo import load_package, segment
from spoco_zoo.archive import read_description
from spoco_zoo.engines import pick_engines, run_onnx
from spoco_zoo.images import pair_files, read_image, read_labels
from spoco_zoo.metrics import mean_scores, score
from spoco_zoo.normalization import fit_affine
from spoco_zoo.packaging.boundaries import CORE
from spoco_zoo.session import EmbeddingSession


def grow(maps, core, final, least, landscape):
    """Instances around cores of `least` pixels, of interior, up to a threshold of foreground."""
    foreground, boundary, interior = maps
    cores, _ = ndimage.label(interior > core)
    if least:
        cores = remove_small_objects(cores, max_size=least - 1)
    height = {"nothing": np.zeros_like(boundary), "boundary": boundary}[landscape]
    return watershed(height, cores, mask=foreground > final).astype(np.uint32)


def compute_maps(run, package, pixels):
    """The maps of a whole image, which is padded to the pooling grid and cropped again."""
    image = fit_affine(pixels, package.normalization).apply(pixels)
    space = pixels.shape[1:]
    grid = package.config.multiple_of
    width = [(0, 0), *((0, -n % step) for n, step in zip(space, grid, strict=True))]
    maps = run(np.pad(image, width, mode="edge")[None].astype(np.float32))[0][0]
    return maps[(slice(None), *(slice(n) for n in space))]


def compute_as_ilastik(run, package, pixels, halo):
    """The maps of an image in ilastik's tiles: blocks, a halo, and what fills the tile."""
    space = pixels.shape[1:]
    tile = [{2: 512, 3: 64}[len(space)]] * len(space)
    tile = [
        max(t, 2 * h + g) for t, h, g in zip(tile, halo, package.config.multiple_of, strict=True)
    ]
    block = [t - 2 * h for t, h in zip(tile, halo, strict=True)]
    padded = np.pad(pixels, [(0, 0), *((t, t) for t in tile)], mode="reflect")
    found = None
    for corner in product(*(range(0, n, b) for n, b in zip(space, block, strict=True))):
        ends = [min(c + b, n) for c, b, n in zip(corner, block, space, strict=True)]
        # the block and its halo, grown on both sides to the size of a tile
        starts = [
            c - h - (t - (e - c + 2 * h)) // 2
            for c, e, h, t in zip(corner, ends, halo, tile, strict=True)
        ]
        cut = padded[
            (slice(None), *(slice(s + t, s + 2 * t) for s, t in zip(starts, tile, strict=True)))
        ]
        image = fit_affine(cut, package.normalization).apply(cut)[None].astype(np.float32)
        maps = run(image)[0][0]
        if found is None:
            found = np.zeros((len(maps), *space), np.float32)
        inside = tuple(slice(c - s, e - s) for c, e, s in zip(corner, ends, starts, strict=True))
        write = tuple(slice(c, e) for c, e in zip(corner, ends, strict=True))
        found[(slice(None), *write)] = maps[(slice(None), *inside)]
    return found


def name_of(way, core, final, least):
    """Name a row of the table."""
    return f"{way}, interior from {core}, foreground from {final}, cores of {least} pixels"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("embeddings", type=Path)
    parser.add_argument("boundaries", type=Path)
    parser.add_argument("split", type=Path, help="folder with images/ and labels/")
    parser.add_argument("--json", type=Path, help="what the card of the package tells")
    options = parser.parse_args()
    package = load_package(options.embeddings)
    (engine,) = (e for e in pick_engines("installed") if e.kind == "onnx")
    recipe = package.config.recipe
    names = {"nothing": "hysteresis", "boundary": "watershed on the boundary"}
    ways = {
        name_of(names[landscape], core, final, least): partial(
            grow, core=core, final=final, least=least, landscape=landscape
        )
        for landscape in names
        for core in (0.3, CORE, 0.5)
        for final in sorted({0.5, recipe.foreground.threshold}, reverse=True)
        for least in (1, 10)
    }
    final = recipe.foreground.threshold
    told = {
        names[landscape]: partial(grow, core=CORE, final=final, least=10, landscape=landscape)
        for landscape in names
    }
    as_ilastik = ", in tiles that are cut and normalised as ilastik does it"
    scores = {"spoco-zoo run": []} | {name: [] for name in ways}
    scores |= {name + as_ilastik: [] for name in told}
    run = partial(run_onnx, engine, options.boundaries / "weights.onnx")
    output = read_description(options.boundaries)["outputs"][0]
    halo = [axis.get("halo", 0) for axis in output["axes"] if axis["type"] == "space"]
    with EmbeddingSession(package, "cpu") as session:
        for path, truth_path in pair_files(options.split / "images", options.split / "labels"):
            pixels, truth = read_image(path, package.n_axes).pixels, read_labels(truth_path)
            scores["spoco-zoo run"].append(score(segment(pixels, session), truth))
            maps = compute_maps(run, package, pixels)
            for name, way in ways.items():
                scores[name].append(score(way(maps), truth))
            tiled = compute_as_ilastik(run, package, pixels, halo)
            for name, way in told.items():
                scores[name + as_ilastik].append(score(way(tiled), truth))
    print("| instances by | AP at IoU 0.50, pooled | mean of images |")
    print("|---|---|---|")
    for name, found in scores.items():
        mean = fmean(one.ap50 for one in found)
        print(f"| {name} | {mean_scores(found).pooled_ap[0]:.3f} | {mean:.3f} |")
    if options.json is not None:
        kept = {"`spoco-zoo run`, for comparison": "spoco-zoo run"}
        for name in told:
            kept[name] = name_of(name, CORE, final, 10)
            kept[name + as_ilastik] = name + as_ilastik
        values = {name: mean_scores(scores[row]).pooled_ap[0] for name, row in kept.items()}
        words = {
            "images": len(scores["spoco-zoo run"]),
            "library": f"scikit-image {skimage.__version__}",
            "ap50": {name: round(float(value), 4) for name, value in values.items()},
        }
        options.json.write_text(json.dumps(words, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
