"""What it costs to work in blocks: time and peak memory, alone and beside the network.

python benchmarks/blocks.py --sizes 512 1024                        # tiny network: all but it
python benchmarks/blocks.py --package weights/nuclei-3d-simulated --nuclei --sizes 512 --workers 1 \
    --network                                                       # a real network

Every run is a process of its own with fresh workers of one thread; rounds go through all variants
in turn, and ratios are taken within a round. Volumes are those of `blobs.py`; with `--nuclei`,
what `nuclei-3d-simulated` was trained for.

`--whole` runs one block as large as the volume too, which needs that much more memory.
`--network` runs the network alone over the same volume, once, in the same tiles, halos included.
`--core` does so with bioimageio.core's block prediction, which needs the volume in memory. Neither
makes instances.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import child
from blobs import write_blobs
from simulated_volumes import draw_nuclei

HERE = Path(__file__)


class Counting:
    """A pool that also adds up what its workers tell."""

    def __init__(self, pool):
        self._pool = pool
        self.count, self.most = pool.count, pool.most
        self.stop = pool.stop
        self.work_s = self.network_s = 0.0

    def run(self, work, numbers):
        for number, done in self._pool.run(work, numbers):
            self.work_s += done.seconds
            self.network_s += done.network_s
            yield number, done


def wishes_of(options, package, threads=1):
    from spoco_zoo.block_jobs import BlockWishes

    block = None if options.block is None else (options.block,) * package.n_axes
    memory = int(options.memory * 1e9)
    return BlockWishes(package.config.recipe, memory, block=block, threads=threads)


def run_blocks(options, folder):
    """The child: find all instances, on workers."""
    from spoco_zoo.distributed import measure_block, segment_image
    from spoco_zoo.package import load_package
    from spoco_zoo.volumes import open_volumes
    from spoco_zoo.workers import Cluster

    package = load_package(options.package)
    (volume,) = open_volumes(str(options.volume), package.n_axes)
    wishes = wishes_of(options, package)
    planned = 0
    if options.measure:
        with Cluster.start(1, 20_000_000_000, folder) as cluster:
            planned = measure_block(volume, package, folder / "trial", wishes, cluster).peak_bytes
    with Cluster.start(options.child_workers, 20_000_000_000, folder) as cluster:
        pool = Counting(cluster)
        start = time.perf_counter()
        done = segment_image([volume], package, folder / "out.ome.zarr", wishes, pool)
        seconds = time.perf_counter() - start
    child.append(
        options.target,
        seconds=seconds,
        work_s=pool.work_s,
        network_s=pool.network_s,
        peak=done.peak_bytes,
        planned=planned,
        blocks=len(done.jobs[0].layout),
        block=done.jobs[0].layout.block,
        found=done.totals[0],
    )


def open_volume(options):
    """The package, the volume as an array, and the tile of the plan."""
    from spoco_zoo.block_jobs import plan_job
    from spoco_zoo.package import load_package
    from spoco_zoo.volumes import open_volumes

    package = load_package(options.package)
    (volume,) = open_volumes(str(options.volume), package.n_axes)
    tile = plan_job(volume, package, Path(), wishes_of(options, package))[1].tile
    return package, volume.read(tuple(slice(0, n) for n in volume.space)), tile


def run_network(options):
    """The child: every pixel through the network once, with the halos of tiles alone."""
    from spoco_zoo.embedder import Embedder
    from spoco_zoo.normalization import fit_affine
    from spoco_zoo.session import EmbeddingSession

    package, pixels, tile = open_volume(options)
    affine = fit_affine(pixels, package.normalization)
    session = EmbeddingSession(package, "cpu", 1)
    tiles = Embedder(pixels, session, tile, affine).plan(
        tuple(slice(0, n) for n in pixels.shape[1:])
    )
    start, cpu = time.perf_counter(), time.process_time()
    for part in tiles:
        sees = tuple(
            slice(s.start, min(s.stop, n)) for s, n in zip(part.read, pixels.shape[1:], strict=True)
        )
        session.embed(affine.apply(pixels[(slice(None), *sees)]))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    child.append(options.target, seconds=seconds, cpu=cpu, peak=child.peak_bytes())


def run_core(options):
    """The child: the same by bioimageio.core, in blocks that are as large with their halo."""
    os.environ["TQDM_DISABLE"] = "1"  # what it says of every block would be part of its time
    from bioimageio.core import Tensor, create_prediction_pipeline, load_model_description
    from bioimageio.core.digest_spec import create_sample_for_model
    from loguru import logger

    logger.disable("bioimageio")
    package, pixels, tile = open_volume(options)
    model = load_model_description(options.package / "rdf.yaml", perform_io_checks=False)
    pipeline = create_prediction_pipeline(
        model, weights_format="onnx", devices=["CPUExecutionProvider"]
    )
    pipeline.load()
    axes = "zyx"[-package.n_axes :]
    tensor = Tensor.from_numpy(pixels[None].astype("float32"), dims=("batch", "channel", *axes))
    sample = create_sample_for_model(model, inputs={"image": tensor}, sample_id="volume")
    sides = [t + 2 * halo for t, halo in zip(tile, package.config.halo, strict=True)]
    if any(side > n for side, n in zip(sides, pixels.shape[1:], strict=True)):
        raise SystemExit(f"--core takes blocks of {sides} voxels: give larger --sizes")
    shape = {"batch": 1, "channel": len(pixels)} | dict(zip(axes, sides, strict=True))
    start, cpu = time.perf_counter(), time.process_time()
    pipeline.predict_sample_with_fixed_blocking(sample, {"image": shape})
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    child.append(options.target, seconds=seconds, cpu=cpu, peak=child.peak_bytes())


def compare(options, size, folder):
    """Go through all variants in rounds."""
    volume = folder / f"{size}.ome.zarr"
    write_blobs(volume, (size,) * 3, draw=draw_nuclei if options.nuclei else None)
    variants = [("blocks", workers) for workers in options.workers]
    variants += [(kind, 1) for kind in ("whole", "network", "core") if getattr(options, kind)]
    found = {variant: [] for variant in variants}
    for number in range(options.rounds):
        for kind, workers in variants:
            target = folder / "records"
            target.unlink(missing_ok=True)
            words = ["--package", options.package, "--memory", options.memory, "--child", kind]
            words += ["--child-workers", workers, "--target", target, "--volume", volume]
            block = size if kind == "whole" else options.block
            words += [] if block is None else ["--block", block]
            words += ["--measure"] if options.measure and workers == options.workers[0] else []
            child.run(HERE, *words)
            found[kind, workers] += child.records(target)
            print(f"round {number + 1}: {size}, {kind}, {workers} done", flush=True)
    shutil.rmtree(volume)
    tell(options, size, found)


def tell(options, size, found):
    """Print medians, and ratios within rounds."""

    def ratio(first, second, name="seconds", other="seconds"):
        pairs = zip(found[first], found[second], strict=True)
        return statistics.median(a[name] / b[other] for a, b in pairs)

    voxels = size**3
    print(f"\n{options.package.name}, {size} cubed, {options.rounds} rounds")
    for (kind, workers), records in found.items():
        seconds = statistics.median(record["seconds"] for record in records)
        peak = max(record["peak"] for record in records) / 1e9
        print(f"{kind}, {workers}: {voxels / seconds:,.0f} voxels/s, peak {peak:.2f} GB")
        if kind not in ("blocks", "whole"):
            continue
        first = records[0]
        sides = " x ".join(map(str, first["block"]))
        print(f"  {first['found']} instances in {first['blocks']} blocks of {sides}")
        share = statistics.median(r["work_s"] / r["network_s"] for r in records)
        print(f"  work of all workers to their time in the network: {share:.2f}")
        cost = statistics.median((r["work_s"] - r["network_s"]) / voxels * 1e6 for r in records)
        print(f"  work besides the network: {cost:.2f} us a voxel")
        if first["planned"]:
            told = max(r["peak"] / r["planned"] for r in records)
            print(f"  peak to the one that the plan told: {told:.3f}")
    one = ("blocks", options.workers[0])
    for other in found:
        match other[0]:
            case "blocks" if other != one:
                print(f"{one[1]} to {other[1]} workers: {ratio(one, other):.2f} times as fast")
            case "whole":
                part = ratio(one, other, "work_s", "work_s")
                print(f"work in blocks to one block of the whole: {part:.2f}")
            case "network" | "core":
                part = ratio(one, other, "work_s")
                print(f"work in blocks to {other[0]} alone: {part:.2f}")
    if options.network and options.core:
        part = ratio(("core", 1), ("network", 1), "cpu", "cpu")
        print(f"CPU time of bioimageio.core to the network alone: {part:.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--package", type=Path, default=HERE.parents[1] / "tests/data/tiny_volume")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512], help="voxels a side")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--memory", type=float, default=3.6, help="GB of a worker")
    parser.add_argument("--block", type=int, help="voxels a side; what fits where left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", action="store_true", help="plan first, and compare the peak")
    parser.add_argument("--whole", action="store_true", help="one block of the whole volume too")
    parser.add_argument("--network", action="store_true", help="run the network alone too")
    parser.add_argument("--core", action="store_true", help="run bioimageio.core too")
    parser.add_argument("--nuclei", action="store_true", help="simulated nuclei, not balls")
    parser.add_argument("--folder", type=Path, help="for volumes and results, a temporary one")
    for hidden, kind in {
        "child": str,
        "child-workers": int,
        "target": Path,
        "volume": Path,
    }.items():
        parser.add_argument(f"--{hidden}", type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child == "network":
        run_network(options)
    elif options.child == "core":
        run_core(options)
    else:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            if options.child:
                run_blocks(options, Path(folder))
                return
            for size in options.sizes:
                compare(options, size, Path(folder))


if __name__ == "__main__":
    main()
