"""Results for people: outlines and tables of many objects, and the literal way for comparison.

    python benchmarks/results.py --objects 50000

Objects are simulated: discs with waves along their rims on a jittered grid, every tenth with a
hole, some of which touch. Everything runs on one core, and files are written. The literal way goes
through the objects one by one: `skimage.measure.regionprops`, `skimage.measure.find_contours`,
`roifile.ImagejRoi.frompoints` and `json`, on the first `--literal` objects, scaled to all; its
contours pass between the pixels' middles, so their areas are not those of the masks. Times are
CPU seconds of this process. Every polygon that was written is opened again, by roifile and by
shapely, and its area compared with its mask.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
PITCH = 32


def simulate(count, seed=0):
    """Labels of `count` blobs, about 22 pixels wide, and an image of two channels."""
    random = np.random.default_rng(seed)
    side = int(np.ceil(count**0.5))
    labels = np.zeros((side * PITCH, side * PITCH), np.uint32)
    y, x = np.mgrid[:PITCH, :PITCH].astype(np.float32)
    for number in range(count):
        center = random.uniform(12, 20, 2)
        dy, dx = y - center[0], x - center[1]
        angle, distance = np.arctan2(dy, dx), np.hypot(dy, dx)
        phases, heights = random.uniform(0, 2 * np.pi, 3), random.uniform(0, 0.15, 3)
        waves = sum(
            h * np.cos(k * angle + p) for h, k, p in zip(heights, (2, 3, 5), phases, strict=True)
        )
        mask = distance < random.uniform(9, 13) * (1 + waves)
        if number % 10 == 0:
            mask &= np.hypot(dy - 2, dx + 1) > 3
        row, column = divmod(number, side)
        cell = np.s_[row * PITCH : (row + 1) * PITCH, column * PITCH : (column + 1) * PITCH]
        labels[cell][mask] = number + 1
    noise = random.integers(0, 4000, (2, *labels.shape), dtype=np.uint16)
    return labels, noise


def timed(call):
    start = time.process_time()
    value = call()
    return time.process_time() - start, value


def ours(labels, image, folder):
    """Seconds of each step, and of each kind of result from labels to its file."""
    from spoco_zoo.measurements import measure, to_csv, to_table
    from spoco_zoo.outlines import trace_objects
    from spoco_zoo.results import name_files, write_results

    seconds = {}
    seconds["measuring"], found = timed(lambda: measure(labels, image))
    seconds["outlines"], objects = timed(lambda: list(trace_objects(labels, found.boxes())))
    rims = {t.label: (t.perimeter, t.hull_area) for t in objects}
    seconds["table as text"], _ = timed(lambda: to_csv(to_table(found, None, rims)))
    del found, objects, rims
    everything = ("rois", "geojson", "table")
    for kinds in (*((kind,) for kind in everything), everything):
        files = name_files(folder / "-".join(kinds) / "a.tif", kinds)
        seconds[", ".join(kinds)], _ = timed(lambda f=files: write_results(f, labels, image))
    return seconds


def literal(labels, image, folder, count):
    """The same one by one, for the first `count` objects."""
    from roifile import ImagejRoi, roiwrite
    from skimage.measure import find_contours, regionprops

    cut = np.where(labels <= count, labels, 0)
    channels = np.moveaxis(image, 0, -1)
    properties = regionprops(cut, channels)

    def contours():
        for one in properties:
            top, left = one.bbox[:2]
            rings = find_contours(np.pad(one.image, 1).astype(float), 0.5)
            yield one.label, [ring[:, ::-1] + [left - 0.5, top - 0.5] for ring in rings]

    def rois():
        found = [
            ImagejRoi.frompoints(ring, name=f"{label}-{n}")
            for label, rings in contours()
            for n, ring in enumerate(rings)
        ]
        roiwrite(folder / "literal.zip", found, mode="w")

    def features():
        found = [
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [r.tolist() for r in rings]},
                "properties": {"objectType": "detection", "name": str(label)},
            }
            for label, rings in contours()
        ]
        text = json.dumps({"type": "FeatureCollection", "features": found})
        (folder / "literal.geojson").write_text(text)

    def table():
        names = ("label", "area", "centroid", "bbox", "intensity_mean", "intensity_max")
        names += ("intensity_min", "equivalent_diameter_area", "perimeter", "eccentricity")
        names += ("solidity",)
        rows = [[getattr(one, name) for name in names] for one in regionprops(cut, channels)]
        (folder / "literal.csv").write_text("\n".join(map(str, rows)))

    calls = {"rois": rois, "geojson": features, "table": table}
    return {kind: timed(call)[0] for kind, call in calls.items()}


def check(labels, folder):
    """Open what was written: objects whose polygons have not the area of their masks."""
    import roifile
    from shapely.geometry import Polygon, shape

    sizes = np.bincount(labels.ravel())
    wrong = {"rois": 0, "geojson": 0}
    rois = roifile.roiread(folder / "rois" / "rois" / "a.zip")
    for roi in rois:
        rings = roi.coordinates(multi=True) if roi.composite else [roi.coordinates()]
        areas = [Polygon(ring) for ring in rings]
        area = sum(a.area if a.exterior.is_ccw else -a.area for a in areas)
        wrong["rois"] += int(area != sizes[int(roi.name)])
    text = (folder / "geojson" / "geojson" / "a.geojson").read_text()
    features = json.loads(text)["features"]
    for feature in features:
        geometry = shape(feature["geometry"])
        right = geometry.area == sizes[int(feature["properties"]["name"])]
        wrong["geojson"] += not (right and geometry.is_valid)
    return len(rois), len(features), wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=50_000)
    parser.add_argument("--literal", type=int, default=2_000)
    options = parser.parse_args()
    labels, image = simulate(options.objects)
    print(f"{options.objects} objects on {labels.shape[0]} x {labels.shape[1]} pixels, 2 channels")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mine = ours(labels, image, folder)
        rows = int(np.ceil(options.literal / (labels.shape[1] // PITCH))) * PITCH
        part = np.s_[:rows]
        theirs = literal(labels[part], image[:, part], folder, options.literal)
        for word, seconds in mine.items():
            line = f"{word}: {seconds:.1f} s"
            if word in theirs:
                all_of_them = theirs[word] * options.objects / options.literal
                line += (
                    f"; one by one {all_of_them:.0f} s, {all_of_them / seconds:.1f} times as long"
                )
            print(line)
        rois, features, wrong = check(labels, folder)
        print(f"opened by roifile: {rois}, of which {wrong['rois']} have another area")
        print(f"opened by shapely: {features}, of which {wrong['geojson']} are wrong or not valid")


if __name__ == "__main__":
    main()
