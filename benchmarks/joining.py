"""CPU time and memory to join and number instances that lie across faces of blocks.

python benchmarks/joining.py --objects 100000 1000000

Every object is one piece in each of two blocks, 1000 blocks in all. The tables of a block are made
where they are taken and are no part of the time. Sizes go in rounds, each in a process of its own.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import child
import numpy as np

HERE = Path(__file__)
BLOCKS = (10, 10, 10)
SIDE = 256  # pixels of a block


def run_one(objects, target):
    """The child: join and number some objects."""
    from spoco_zoo.labels import find_groups

    find_groups(3, np.array([[1, 2]]))  # imports are no part of the time
    before = child.resident_bytes()
    joining, keys = join(objects)
    numbering, total = number(keys)
    if total != objects:
        raise RuntimeError(f"{total} instances: expected {objects}")
    memory = child.peak_bytes() - before
    child.append(target, size=objects, joining=joining, numbering=numbering, memory=memory)


def join(objects):
    """CPU seconds to join, and the keys of the pieces of each block."""
    from spoco_zoo.blocks import Meeting
    from spoco_zoo.joining import Joining
    from spoco_zoo.layout import Layout
    from spoco_zoo.recipe import Recipe

    layout = Layout(tuple(n * SIDE for n in BLOCKS), (SIDE,) * 3)
    faces = [
        (block, other)
        for block in range(len(layout))
        for axis in range(3)
        if (other := layout.neighbor(block, [int(n == axis) for n in range(3)])) is not None
    ]
    sizes = np.diff(np.linspace(0, objects, len(faces) + 1).astype(int))
    # pieces of a block: those of its first face, then of the next
    starts, counts = {}, np.zeros(len(layout), int)
    for face, size in zip(faces, sizes, strict=True):
        for block in face:
            starts[face, block] = counts[block]
            counts[block] += size
    joining, clock = Joining(Recipe(min_size=10)), Clock()
    for block, count in enumerate(counts):
        numbers = np.arange(count)
        found = {
            "groups": np.array(count),
            "bound_group": numbers,
            "bound_size": np.full(count, 1000),
            "bound_first": numbers + block * SIDE**3,
            "touching": np.zeros((0, 2), np.int64),
        }
        with clock:
            joining.add_block(found)
    for face, size in zip(faces, sizes, strict=True):
        pairs = np.arange(size)[:, None] + [starts[face, block] for block in face]
        with clock:
            joining.add_meeting(*face, Meeting(pairs, pairs.copy()))
    with clock:
        keys = list(joining.finish())
    return clock.seconds, keys


def number(keys):
    """CPU seconds to number the instances of some blocks by the keys of their pieces, and count."""
    from spoco_zoo.joining import Numbering

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        numbering = Numbering(Path(folder))
        for block, own in enumerate(keys):
            found = {
                "keys": np.sort(own),
                "firsts": np.arange(len(own)) + block * SIDE**3,
                "is_shared": np.ones(len(own), bool),
            }
            with clock:
                numbering.add_block(found)
        with clock:
            total = numbering.finish().total
    return clock.seconds, total


class Clock:
    """Adds up the CPU time of what is done within it."""

    def __init__(self):
        self.seconds = 0.0

    def __enter__(self):
        self._start = time.process_time()

    def __exit__(self, *_):
        self.seconds += time.process_time() - self._start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_one(options.child, options.target)
        return
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "records"
        for _ in range(options.rounds):
            for size in options.objects:
                child.run(HERE, "--child", size, "--target", target)
        found = child.records(target)
    print("| objects | joining, CPU s | numbering, CPU s | both, us an object | bytes an object |")
    print("|---|---|---|---|---|")
    for size in options.objects:
        mine = [record for record in found if record["size"] == size]
        joining, numbering, memory = (
            statistics.median(record[name] for record in mine)
            for name in ("joining", "numbering", "memory")
        )
        print(
            f"| {size:,} | {joining:.2f} | {numbering:.2f} | "
            f"{(joining + numbering) / size * 1e6:.2f} | {memory / size:.0f} |"
        )


if __name__ == "__main__":
    main()
