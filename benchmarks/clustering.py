"""Clustering: the package's against scikit-learn, hdbscan and fast_hdbscan, and against the exact.

    python benchmarks/clustering.py timing --case separated --case many --case volume
    python benchmarks/clustering.py timing --case real --images DATA/test
    python benchmarks/clustering.py accuracy --images DATA/val

`timing` runs every side in a child process of its own, ours before and after each of the others,
and prints ratios. Only the call that clusters is timed: the others are handed the foreground's
embeddings as rows, which is not counted, while ours starts from the embedded image and ends with
labels. Memory is the child's peak resident set size less that before the embedding was there.

`accuracy` scores, on images with truth, the package's clustering and an exact one that looks at
every pixel: neither thinning, nor windows, nor blocks. Foreground, core and what comes after
clustering are the same on all sides.

DATA holds {test,val}/{images,labels}. fast_hdbscan is left out where it is not installed.
"""

import argparse
import importlib.util
import shutil
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import child
import numpy as np

HERE = Path(__file__).resolve()
WEIGHTS = HERE.parent.parent / "weights" / "nuclei-2d"

# each of the others, and the side of ours that does the same
SIDES = {
    "sklearn-1": "ours-mean_shift",
    "sklearn-all": "ours-mean_shift",
    "ours-consistency": "ours-mean_shift",
    "hdbscan": "ours-hdbscan",
    "fast_hdbscan": "ours-hdbscan",
}
WORDS = {
    "ours-mean_shift": "ours: mean-shift",
    "ours-hdbscan": "ours: HDBSCAN",
    "ours-consistency": "ours: consistency",
    "sklearn-1": "sklearn MeanShift(bin_seeding=True)",
    "sklearn-all": "sklearn MeanShift(bin_seeding=True, n_jobs=-1)",
    "hdbscan": "hdbscan.HDBSCAN",
    "fast_hdbscan": "fast_hdbscan.HDBSCAN",
}
# of which the labels are the exact answer
EXACT = {"mean_shift": ("sklearn-1", "sklearn-all"), "hdbscan": ("hdbscan",)}


# ------------------------------------------------------------------------------------------------
# what is clustered


def spread_points(random, count, low, high, least=0.0):
    """Draw points that are apart: the farthest of 20 candidates, one after the other."""
    points = random.uniform(low, high, (1, len(low)))
    while len(points) < count:
        tried = random.uniform(low, high, (20, len(low)))
        gaps = np.linalg.norm(tried[:, None] - points, axis=2).min(axis=1)
        if gaps.max() >= least:
            points = np.vstack([points, tried[gaps.argmax()]])
    return points


def make_labels(shape, count, cover, seed):
    """Objects that are balls, cut where they meet; together they cover a part of the image."""
    from scipy.spatial import cKDTree

    random = np.random.default_rng(seed)
    centers = spread_points(random, count, np.zeros(len(shape)), np.array(shape))
    places = np.stack(np.unravel_index(np.arange(np.prod(shape)), shape), axis=1)
    distance, nearest = cKDTree(centers).query(places)
    inside = distance <= np.quantile(distance, cover)
    return np.where(inside, nearest + 1, 0).astype(np.uint32).reshape(shape)


def make_embedding(labels, width, seed, blur=0.0):
    """Centres at least 4 apart, as the loss makes them, and noise of about 0.25 a pixel."""
    from scipy import ndimage

    random = np.random.default_rng(seed)
    count = int(labels.max())
    centers = spread_points(random, count + 1, np.full(width, -5.0), np.full(width, 5.0), 4.0)
    embedding = np.empty((width, *labels.shape), np.float32)
    for axis, plane in enumerate(embedding):
        plane[:] = centers[:, axis].astype(np.float32)[labels]
        if blur:
            plane[:] = ndimage.gaussian_filter(plane, blur)
        plane += random.normal(0, 0.25 / np.sqrt(width), labels.shape).astype(np.float32)
    return embedding


def make_scenes(case, folder, images):
    """Write what a case is made of, as NPY files of one name: scenes of one image each."""
    if case == "real":
        return write_real_scenes(folder, images)
    shape, count, width, cover, blur = {
        "separated": ((530, 500), 16, 16, 0.445, 0.0),
        "many": ((1024, 1024), 300, 8, 0.6, 0.0),
        "volume": ((48, 160, 160), 60, 8, 0.5, 1.5),
    }[case]
    truth = make_labels(shape, count, cover, seed=1)
    write_scene(
        folder,
        "scene",
        truth=truth,
        foreground=truth > 0,
        core=truth > 0,
        embedding=make_embedding(truth, width, seed=2, blur=blur),
        momentum=make_embedding(truth, width, seed=3, blur=blur),
    )
    return {"radius": 0.5, "min_size": 50, "fill_reach": 5}


def write_real_scenes(folder, images):
    """Embed the images with the shipped network, once for all sides."""
    from spoco_zoo.foreground import find_core, find_foreground

    recipe = None
    for name, embedded, truth, package in embedded_images(images):
        recipe = package.config.recipe
        rule, probability = recipe.foreground, embedded.probability
        foreground = find_foreground(embedded.embedding, rule, probability)
        core = find_core(foreground, rule, probability)
        write_scene(
            folder,
            name,
            truth=truth,
            foreground=foreground,
            core=core,
            embedding=embedded.embedding,
            momentum=embedded.embedding,  # this network has no other
        )
    return {
        "radius": recipe.clustering.bandwidth,
        "min_size": recipe.min_size,
        "fill_reach": recipe.fill_reach,
    }


def write_scene(folder, name, **arrays):
    for kind, array in arrays.items():
        np.save(folder / f"{name}.{kind}.npy", array)


def embedded_images(images):
    """Yield name, embedding, truth and package of every image of a folder with labels."""
    from spoco_zoo import load_package
    from spoco_zoo.images import pair_files, read_image, read_labels
    from spoco_zoo.segmentation import embed
    from spoco_zoo.session import EmbeddingSession

    package = load_package(WEIGHTS)
    with EmbeddingSession(package, "cpu") as session:
        for image, labels in pair_files(images / "images", images / "labels"):
            pixels = read_image(image, package.n_axes).pixels
            yield image.stem, embed(pixels, session), read_labels(labels), package


# ------------------------------------------------------------------------------------------------
# the sides


def make_side(name, settings):
    """Give a function of an embedded scene that returns its labels, and whether it takes rows."""
    radius, least = settings["radius"], settings["min_size"]
    if name.startswith("ours-"):
        return ours(name.removeprefix("ours-"), settings)
    if name.startswith("sklearn"):
        from sklearn.cluster import MeanShift

        # it says so where bins are of no use, and takes every point as a seed
        warnings.filterwarnings("ignore", "Binning data failed")
        jobs = -1 if name == "sklearn-all" else None
        return lambda rows: MeanShift(bandwidth=radius, bin_seeding=True, n_jobs=jobs).fit(rows)
    from importlib import import_module

    library = import_module(name).HDBSCAN
    return lambda rows: library(min_cluster_size=least, cluster_selection_epsilon=radius).fit(rows)


def ours(method, settings):
    from spoco_zoo import cluster
    from spoco_zoo.recipe import Consistency, Hdbscan, MeanShift, Recipe

    radius = settings["radius"]
    recipe = Recipe(
        clustering={
            "mean_shift": MeanShift(bandwidth=radius),
            "hdbscan": Hdbscan(epsilon=radius),
            "consistency": Consistency(bandwidth=radius),
        }[method],
        min_size=settings["min_size"],
        fill_reach=settings["fill_reach"],
    )

    def run(embedding, momentum, foreground, core):
        return cluster(embedding, foreground, recipe, momentum, core)

    return run


def run_side(name, folder, target):
    """The child: cluster every scene of a folder, and note time and labels of each."""
    settings = child.records(folder / "settings")[0]
    side = make_side(name, settings)
    is_ours = name.startswith("ours-")
    few = np.random.default_rng(0).normal(size=(8, 64, 64)).astype(np.float32)
    if is_ours:  # imports and compilers are no part of the time
        everywhere = np.ones((64, 64), bool)
        side(few, few, everywhere, everywhere)
    else:
        side(np.ascontiguousarray(few.reshape(8, -1).T[:2000]))
    before, largest = child.resident_bytes(), 0
    for path in sorted(folder.glob("*.embedding.npy")):
        scene = path.name.removesuffix(".embedding.npy")
        load = {kind: folder / f"{scene}.{kind}.npy" for kind in ("momentum", "foreground", "core")}
        embedding, core = np.load(path), np.load(load["core"])
        largest = max(largest, embedding.nbytes)
        if is_ours:
            needed = name == "ours-consistency"
            momentum = np.load(load["momentum"]) if needed else None
            foreground = np.load(load["foreground"])
            start = time.perf_counter()
            labels = side(embedding, momentum, foreground, core)
            seconds = time.perf_counter() - start
        else:
            rows = np.ascontiguousarray(embedding[:, core].T)
            start = time.perf_counter()
            found = side(rows).labels_
            seconds = time.perf_counter() - start
            labels = np.zeros(core.shape, np.int32)
            labels[core] = found + 1
        np.save(target.with_name(f"{target.name}.{scene}.npy"), labels)
        child.append(
            target,
            scene=scene,
            seconds=seconds,
            memory=(child.peak_bytes() - before) / largest,
        )


# ------------------------------------------------------------------------------------------------
# timing


def time_case(case, options):
    """Run all sides of a case and print their ratios."""
    folder = Path(tempfile.mkdtemp(prefix="clustering-", dir=options.scratch))
    try:
        child.append(folder / "settings", **make_scenes(case, folder, options.images))
        cores = [np.load(path) for path in folder.glob("*.core.npy")]
        pixels = sum(int(core.sum()) for core in cores)
        print(f"\n## {case}: {len(cores)} images, {pixels} pixels to be clustered", flush=True)
        runs = {}
        for name in options.side or SIDES:
            if importlib.util.find_spec(name.split("-")[0].replace("ours", "spoco_zoo")) is None:
                print(f"{WORDS[name]}: left out, it is not installed", flush=True)
                continue
            time_pair(name, SIDES[name], folder, runs, options)
        print_agreement(folder, runs)
    finally:
        shutil.rmtree(folder)


def time_pair(name, rival, folder, runs, options):
    """Run one side between two runs of ours, again and again where it is short."""
    ratios, line = [], ""
    for _ in range(options.rounds):
        before = run_child(rival, folder, options.limit)
        found = run_child(name, folder, options.limit)
        after = run_child(rival, folder, options.limit)
        runs.setdefault(rival, before)
        runs.setdefault(name, found)
        is_done = len(found) == len(before)
        if not is_done and not found:
            mine = [sum(r["seconds"] for r in run.values()) for run in (before, after)]
            line = f"> {options.limit / statistics.mean(mine):.0f} (stopped)"
            break
        theirs = sum(r["seconds"] for r in found.values())
        mine = [sum(run[scene]["seconds"] for scene in found) for run in (before, after)]
        ratios.append(theirs / statistics.mean(mine))
        line = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        line += "" if is_done else f", on the {len(found)} of {len(before)} images it finished"
        if not is_done or theirs > options.once:
            break
    print(f"time, {WORDS[name]} / {WORDS[rival]}: {line}", flush=True)


def run_child(name, folder, limit):
    """Records of one side by scene: seconds and memory; fewer scenes if the limit ended it."""
    target = folder / f"{name}.records"
    target.unlink(missing_ok=True)
    child.run(HERE, "side", name, folder, target, limit=limit)
    return {record["scene"]: record for record in child.records(target)}


def print_agreement(folder, runs):
    """Memory, objects, and the adjusted Rand index against truth and against the exact side."""
    print("\n| side | memory | objects | ARI, truth | ARI, exact |\n|---|---|---|---|---|")
    scenes = sorted(p.name.removesuffix(".truth.npy") for p in folder.glob("*.truth.npy"))
    everything = [objects_and_ari(folder, scene, None) for scene in scenes]
    print(f"| truth | | {sum(count for count, _ in everything)} | | |")
    for name, found in sorted(runs.items()):
        exact = next((e for m, sides in EXACT.items() if m in name for e in sides if e in runs), "")
        done = [scene for scene in scenes if scene in found]
        if not done:
            print(f"| {WORDS[name]} | stopped | | | |")
            continue
        numbers = [objects_and_ari(folder, scene, name) for scene in done]
        shared = [scene for scene in done if scene in runs.get(exact, {})]
        against = [objects_and_ari(folder, scene, name, exact)[1] for scene in shared]
        exact_ari = f"{statistics.mean(against):.4f}" if against else ""
        share = "" if len(done) == len(scenes) else f" ({len(done)} of {len(scenes)} images)"
        print(
            f"| {WORDS[name]}{share} | {max(r['memory'] for r in found.values()):.1f} "
            f"| {sum(count for count, _ in numbers)} "
            f"| {statistics.mean(ari for _, ari in numbers):.4f} | {exact_ari} |",
            flush=True,
        )


def objects_and_ari(folder, scene, name, other=None):
    """Objects of a side, and its ARI in the core of true objects; unassigned is one more group."""
    from sklearn.metrics import adjusted_rand_score

    def labels_of(side):
        if side is None:
            return np.load(folder / f"{scene}.truth.npy")
        return np.load(folder / f"{side}.records.{scene}.npy")

    truth, labels, against = labels_of(None), labels_of(name), labels_of(other)
    where = np.load(folder / f"{scene}.core.npy") & (truth > 0)
    count = len(np.unique(labels[labels > 0]))
    return count, adjusted_rand_score(against[where], labels[where]) if where.any() else 1.0


# ------------------------------------------------------------------------------------------------
# accuracy


def measure_accuracy(options):
    """Score the package's clustering and the exact one on the images of a folder."""
    from spoco_zoo.foreground import find_core, find_foreground
    from spoco_zoo.metrics import score
    from spoco_zoo.recipe import Hdbscan
    from spoco_zoo.segmentation import make_instances

    scores = {}
    for name, embedded, truth, package in embedded_images(options.images):
        recipe = package.config.recipe
        rule, probability = recipe.foreground, embedded.probability
        foreground = find_foreground(embedded.embedding, rule, probability)
        core = find_core(foreground, rule, probability)
        density = recipe.model_copy(update={"clustering": Hdbscan(epsilon=1.5)})
        found = {
            "ours: mean-shift": make_instances(embedded, recipe),
            "ours: HDBSCAN": make_instances(embedded, density),
        }
        raw = exact_labels(embedded.embedding, core, recipe)
        found |= {side: finish(labels, foreground, recipe) for side, labels in raw.items()}
        for side, labels in found.items():
            scores.setdefault(side, []).append(score(labels, truth))
        dice = ", ".join(f"{each[-1].sbd:.3f}" for each in scores.values())
        print(f"{name}: {core.sum()} core pixels, SBD of each side {dice}", flush=True)
    print_scores(scores)


def print_scores(scores):
    from spoco_zoo.metrics import mean_scores

    print("\n| side | AP, all objects | AP50, all objects | AP, mean of images | SBD | objects |")
    print("|---|---|---|---|---|---|")
    for side, found in scores.items():
        summary = mean_scores(found)
        print(
            f"| {side} | {statistics.mean(summary.pooled_ap):.4f} | {summary.pooled_ap[0]:.4f} "
            f"| {summary.mean_ap:.4f} | {summary.sbd:.4f} | {summary.n_predicted} |"
        )
    print(f"\n{summary.n_images} images, {summary.n_truth} objects")


def finish(labels, foreground, recipe):
    """What `cluster` does once clusters are known."""
    from spoco_zoo.labels import fill_from_neighbors, relabel, remove_small, split_disconnected

    labels = remove_small(split_disconnected(labels), recipe.min_size)
    return relabel(fill_from_neighbors(labels, foreground, recipe.fill_reach))


def exact_labels(embedding, core, recipe):
    """Labels by every exact side, of the core pixels, before finishing."""
    from hdbscan import HDBSCAN

    from spoco_zoo.labels import find_pieces

    rows = np.ascontiguousarray(embedding[:, core].T)
    piece = find_pieces(core)[core]
    radius, least = recipe.clustering.bandwidth, recipe.min_size
    answers = {}
    for scope, groups in (("piece", piece), ("image", np.ones_like(piece))):
        ends, crowds = climb_in_groups(rows, groups, radius)
        for way, points in (("nearest mode", rows), ("mode climbed to", ends)):
            side = f"exact mean-shift by {scope}, {way}"
            answers[side] = assign(points, ends, crowds, groups, radius)
    if len(rows) > least:
        density = HDBSCAN(min_cluster_size=least, cluster_selection_epsilon=1.5)
        answers["hdbscan, all core pixels"] = density.fit_predict(rows.astype(np.float64)) + 1
    else:
        answers["hdbscan, all core pixels"] = np.zeros(len(rows), np.int64)
    images = {}
    for side, numbers in answers.items():
        images[side] = np.zeros(core.shape, np.uint32)
        images[side][core] = numbers
    return images


def climb_in_groups(rows, groups, radius):
    """Climb from every point to its mode of a flat kernel, among the points of its group."""
    ends, crowds = np.empty_like(rows), np.zeros(len(rows), np.int64)
    for group in np.unique(groups):
        here = np.flatnonzero(groups == group)
        ends[here], crowds[here] = climb(rows[here], radius)
    return ends, crowds


def climb(points, radius, most_steps=300, at_rest=1e-3, cells=1 << 22):
    """Shift every point to the mean of all points within the radius until it rests.

    Distances are products of matrices, some seeds at a time. A seed rests where it moves less
    than a thousandth of the radius.
    """
    origin = points.mean(axis=0)
    points = points - origin
    ones = np.ones((len(points), 1), np.float32)
    lengths = (points * points).sum(axis=1, keepdims=True)
    to_distance, to_sum = np.hstack([points, lengths, ones]), np.hstack([points, ones])
    here, crowds = points.copy(), np.zeros(len(points), np.int64)
    moving = np.arange(len(points))
    batch = max(cells // len(points), 1)
    for _ in range(most_steps):
        still = []
        for start in range(0, len(moving), batch):
            seeds = moving[start : start + batch]
            at = here[seeds]
            beyond = (at * at).sum(axis=1, keepdims=True) - np.float32(radius * radius)
            excess = np.hstack([-2 * at, ones[: len(at)], beyond]) @ to_distance.T
            sums = np.less_equal(excess, 0, out=excess) @ to_sum
            counts = sums[:, -1]
            there = sums[:, :-1] / np.maximum(counts, 1)[:, None]
            there = np.where(counts[:, None] > 0, there, at)
            here[seeds], crowds[seeds] = there, counts
            still.append(seeds[np.linalg.norm(there - at, axis=1) > at_rest * radius])
        moving = np.concatenate(still)
        if not len(moving):
            break
    return here + origin, crowds


def assign(points, ends, crowds, groups, radius):
    """Give points the nearest mode of their group within the radius; 0 where there is none.

    Of modes within one radius only the most crowded stays, as in scikit-learn.
    """
    numbers, count = np.zeros(len(points), np.int64), 0
    for group in np.unique(groups):
        here = np.flatnonzero(groups == group)
        modes, left = [], here[np.argsort(-crowds[here], kind="stable")]
        while len(left):
            modes.append(ends[left[0]])
            left = left[np.linalg.norm(ends[left] - modes[-1], axis=1) > radius]
        nearest, gap = np.zeros(len(here), np.int64), np.full(len(here), np.inf)
        for number, mode in enumerate(modes, start=1):
            away = np.linalg.norm(points[here] - mode, axis=1)
            nearest[away < gap] = number
            gap = np.minimum(gap, away)
        numbers[here] = np.where(gap <= radius, nearest + count, 0)
        count += len(modes)
    return numbers


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    timing = commands.add_parser("timing", help="ratios of time and memory")
    timing.add_argument(
        "--case", action="append", choices=["separated", "many", "volume", "real"], required=True
    )
    timing.add_argument("--images", type=Path, help="folder with images/ and labels/, for 'real'")
    timing.add_argument("--limit", type=float, default=600, help="seconds that a side may take")
    timing.add_argument("--once", type=float, default=30, help="what takes longer is run once")
    timing.add_argument("--side", action="append", choices=SIDES, help="all where left out")
    timing.add_argument("--rounds", type=int, default=5, help="repeats of what is short")
    timing.add_argument("--scratch", type=Path, help="folder for temporary files")
    accuracy = commands.add_parser("accuracy", help="AP and SBD against exact clustering")
    accuracy.add_argument("--images", type=Path, required=True, help="folder with images/, labels/")
    side = commands.add_parser("side", help="(one side, run by timing)")
    side.add_argument("name")
    side.add_argument("folder", type=Path)
    side.add_argument("target", type=Path)
    options = parser.parse_args()
    if options.command == "side":
        run_side(options.name, options.folder, options.target)
    elif options.command == "accuracy":
        measure_accuracy(options)
    else:
        if "real" in options.case and options.images is None:
            parser.error("case 'real' needs --images")
        for case in options.case:
            time_case(case, options)


if __name__ == "__main__":
    main()
