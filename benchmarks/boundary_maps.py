"""What ilastik makes of boundary maps, against what `spoco-zoo run` makes of the embeddings.

    python benchmarks/boundary_maps.py weights/nuclei-2d weights/nuclei-2d-boundaries DATA/val

The maps are thresholded as *Object Classification* does it (hysteresis: core is interior, final is
foreground, objects are not merged), and cut by a watershed on the boundary with cores as seeds, as
*Multicut* begins; both by scikit-image. The threshold of interior is 0.5, that of foreground is
also that of the recipe.
"""

import argparse
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
from scipy import ndimage
from skimage.morphology import remove_small_objects
from skimage.segmentation import watershed

from spoco_zoo import load_package, segment
from spoco_zoo.engines import pick_engines, run_onnx
from spoco_zoo.images import pair_files, read_image, read_labels
from spoco_zoo.metrics import mean_scores, score
from spoco_zoo.normalization import fit_affine
from spoco_zoo.session import EmbeddingSession


def grow(maps, final, least, landscape):
    """Instances around cores of `least` pixels up to a threshold of foreground."""
    foreground, boundary, interior = maps
    cores, _ = ndimage.label(interior > 0.5)
    if least:
        cores = remove_small_objects(cores, max_size=least - 1)
    height = {"nothing": np.zeros_like(boundary), "boundary": boundary}[landscape]
    return watershed(height, cores, mask=foreground > final).astype(np.uint32)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("embeddings", type=Path)
    parser.add_argument("boundaries", type=Path)
    parser.add_argument("split", type=Path, help="folder with images/ and labels/")
    options = parser.parse_args()
    package = load_package(options.embeddings)
    (engine,) = (e for e in pick_engines("installed") if e.kind == "onnx")
    recipe = package.config.recipe
    names = {"nothing": "hysteresis", "boundary": "watershed on the boundary"}
    ways = {
        f"{names[landscape]}, foreground from {final}, cores of {least} pixels": partial(
            grow, final=final, least=least, landscape=landscape
        )
        for landscape in names
        for final in sorted({0.5, recipe.foreground.threshold}, reverse=True)
        for least in (1, 10)
    }
    grid = package.config.multiple_of
    scores = {"spoco-zoo run": []} | {name: [] for name in ways}
    with EmbeddingSession(package, "cpu") as session:
        for path, truth_path in pair_files(options.split / "images", options.split / "labels"):
            pixels, truth = read_image(path, package.n_axes).pixels, read_labels(truth_path)
            scores["spoco-zoo run"].append(score(segment(pixels, session), truth))
            image = fit_affine(pixels, package.normalization).apply(pixels)
            # the declared size is a multiple of the pooling grid
            space = [-(-n // m) * m for n, m in zip(truth.shape, grid, strict=True)]
            width = [(0, 0), *((0, m - n) for n, m in zip(truth.shape, space, strict=True))]
            padded = np.pad(image, width, mode="edge")[None]
            maps = run_onnx(engine, options.boundaries / "weights.onnx", padded)[0][0]
            maps = maps[(slice(None), *(slice(n) for n in truth.shape))]
            for name, way in ways.items():
                scores[name].append(score(way(maps), truth))
    print("| instances by | AP at IoU 0.50, pooled | mean of images |")
    print("|---|---|---|")
    for name, found in scores.items():
        mean = fmean(one.ap50 for one in found)
        print(f"| {name} | {mean_scores(found).pooled_ap[0]:.3f} | {mean:.3f} |")


if __name__ == "__main__":
    main()
