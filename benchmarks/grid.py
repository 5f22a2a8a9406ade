"""Compare clustering in windows with cutting the pixel grid where embeddings change.

    python benchmarks/grid.py PACKAGE DATA/val

The grid needs neither centres nor windows: pixels of the core stay where the embedding changes
little, from neighbour to neighbour or across some pixels, and their connected pieces are the
instances. Foreground, least size and filling are those of the package.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from spoco_zoo import cluster, load_package
from spoco_zoo.foreground import find_core, find_foreground
from spoco_zoo.images import pair_files, read_image, read_labels
from spoco_zoo.labels import fill_from_neighbors, relabel, remove_small, split_disconnected
from spoco_zoo.metrics import mean_scores, score
from spoco_zoo.pixels import HostPixels
from spoco_zoo.segmentation import embed
from spoco_zoo.session import EmbeddingSession

THRESHOLDS = (0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)


def across(embedding: np.ndarray, reach: int) -> np.ndarray:
    """Largest distance between the pixels `reach` before and after, on axes and diagonals."""
    height, width = embedding.shape[1:]
    worst = np.zeros((height, width), np.float32)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        by_y, by_x = 2 * reach * dy, 2 * reach * abs(dx)
        before = embedding[:, : height - by_y, : width - by_x]
        after = embedding[:, by_y:, by_x:]
        if dx < 0:
            before = embedding[:, : height - by_y, by_x:]
            after = embedding[:, by_y:, : width - by_x]
        inner = slice(by_y // 2, height - by_y // 2), slice(by_x // 2, width - by_x // 2)
        distance = np.sqrt(((after - before) ** 2).sum(axis=0))
        worst[inner] = np.maximum(worst[inner], distance)
    return worst


def main(package_path: str, data: str) -> None:
    """Print AP at IoU 0.50, mean AP and SBD of every way."""
    package = load_package(package_path)
    recipe = package.config.recipe
    items = []
    with EmbeddingSession(package, "cpu") as session:
        for image, labels in pair_files(Path(data) / "images", Path(data) / "labels"):
            found = embed(read_image(image, 2).pixels, session)
            foreground = find_foreground(found.embedding, recipe.foreground, found.probability)
            core = find_core(foreground, recipe.foreground, found.probability)
            items.append((found.embedding, foreground, core, read_labels(labels)))

    def report(name: str, segment: Callable[..., np.ndarray]) -> None:
        found = mean_scores([score(segment(*item[:3]), item[3]) for item in items])
        mean = np.mean(found.pooled_ap)
        print(f"{name:>24} {found.pooled_ap[0]:.3f} {mean:.3f} {found.sbd:.3f}", flush=True)

    report("windows", lambda e, f, c: cluster(e, f, recipe, core=c))
    ways = {
        "neighbours": lambda e, c: HostPixels(e).steps(c),
        "across 1 pixel": lambda e, _: across(e, 1),
        "across 2 pixels": lambda e, _: across(e, 2),
    }
    for name, change in ways.items():
        for threshold in THRESHOLDS:

            def cut(
                e: np.ndarray,
                f: np.ndarray,
                c: np.ndarray,
                change: Callable[..., np.ndarray] = change,
                threshold: float = threshold,
            ) -> np.ndarray:
                still = split_disconnected((c & (change(e, c) <= threshold)).astype(np.uint8))
                grown = fill_from_neighbors(remove_small(still, 10), c, 8)
                kept = remove_small(grown, recipe.min_size)
                return relabel(fill_from_neighbors(kept, f, recipe.fill_reach))

            report(f"{name}, {threshold}", cut)


if __name__ == "__main__":
    main(*sys.argv[1:])
