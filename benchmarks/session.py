"""How ONNX Runtime is set up, in which tiles an image is embedded, what float16 costs.

Where it can, this measures CPU time on one thread, which other programs on the machine disturb
least; sides alternate. What is cold needs a process of its own.

    python benchmarks/session.py options
    python benchmarks/session.py first-calls
    python benchmarks/session.py tiles
    python benchmarks/session.py batches
    python benchmarks/session.py volumes          needs spoco-zoo[train]
    python benchmarks/session.py half DATA/val    needs onnx
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnxruntime

from spoco_zoo import session as room
from spoco_zoo.images import pair_files, read_image, read_labels
from spoco_zoo.machine import count_cores
from spoco_zoo.metrics import mean_scores, score
from spoco_zoo.package import load_package
from spoco_zoo.segmentation import embed, make_instances
from spoco_zoo.session import EmbeddingSession
from spoco_zoo.simulation import simulate_nuclei

PACKAGE = Path(__file__).resolve().parent.parent / "weights" / "nuclei-2d"
SIZES = (256, 384, 512, 768, 1024, 1536, 2048)


# --- one option at a time


def plain_session(content, change=None, threads=1):
    """Open a network as the product does, its arena aside, and one option changed."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.enable_mem_pattern = False
    if change is not None:
        change(options)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def attribute(name, value):
    return lambda options: setattr(options, name, value)


def entry(name, value):
    return lambda options: options.add_session_config_entry(name, value)


def in_parallel(options):
    options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    options.inter_op_num_threads = 2


LEVEL = onnxruntime.GraphOptimizationLevel
ON_ONE_THREAD = {
    "all optimisations of the graph, one arena": None,
    "optimisation: extended": attribute("graph_optimization_level", LEVEL.ORT_ENABLE_EXTENDED),
    "optimisation: basic": attribute("graph_optimization_level", LEVEL.ORT_ENABLE_BASIC),
    "optimisation: none": attribute("graph_optimization_level", LEVEL.ORT_DISABLE_ALL),
    "no arena": attribute("enable_cpu_mem_arena", False),
    "memory pattern": attribute("enable_mem_pattern", True),
    "no reuse of memory": attribute("enable_mem_reuse", False),
    "denormals are zero": entry("session.set_denormal_as_zero", "1"),
    "no prepacking": entry("session.disable_prepacking", "1"),
    "initializers off the arena": entry("session.use_device_allocator_for_initializers", "1"),
}
ON_ALL_THREADS = {
    "one operator at a time, spinning": None,
    "no spinning": entry("session.intra_op.allow_spinning", "0"),
    "dynamic blocks": entry("session.dynamic_block_base", "4"),
    "operators in parallel": in_parallel,
    "one thread": attribute("intra_op_num_threads", 1),
    "twice as many threads as cores": attribute("intra_op_num_threads", 2 * count_cores()),
}


def compare_options(repeats=9):
    package = load_package(PACKAGE)
    content = package.read(package.onnx_name)
    image = np.random.default_rng(0).standard_normal((1, 1, 512, 512), np.float32)
    for clock, threads, changes in (
        (time.process_time, 1, ON_ONE_THREAD),
        (time.perf_counter, count_cores(), ON_ALL_THREADS),
    ):
        print(f"{clock.__name__}, {threads} threads, image of 512 x 512")
        sessions = {name: plain_session(content, c, threads) for name, c in changes.items()}
        runs = {
            n: lambda s=session: s.run(None, {"image": image}) for n, session in sessions.items()
        }
        first = next(iter(runs))
        expected = runs[first]()
        same = {
            name: all((a == b).all() for a, b in zip(run(), expected, strict=True))
            for name, run in runs.items()
        }
        for name, ratios in alternate(runs, clock, repeats).items():
            bits = "same bits" if same[name] else "other bits"
            print(f"  {name:44s}{describe(ratios)}  {bits}")


def alternate(runs, clock, repeats):
    """Time every run in turn; give each one's ratios to the first."""
    times = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            time.sleep(0.05)  # threads of the one before stop spinning
            start = clock()
            run()
            times[name].append(clock() - start)
    first = next(iter(times.values()))
    return {n: [a / b for a, b in zip(t, first, strict=True)] for n, t in times.items()}


def describe(ratios):
    return f"{statistics.median(ratios):6.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


# --- first calls, and tiles


def measure_alone(work, size, arena):
    """Measure in a process of its own: seconds cold and warm, and memory in MB."""
    command = [sys.executable, __file__, "_alone", work, str(size), arena]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def alone(work, size, arena):
    if arena == "default":
        room._roomy_arena = lambda _: nullcontext()
    random = np.random.default_rng(0)
    warm_calls = 2
    with EmbeddingSession(load_package(PACKAGE), "cpu", threads=1) as session:
        if work == "square":
            image = random.standard_normal((1, size, size), np.float32)
            call = lambda: session.embed(image)  # noqa: E731
        else:
            shape = (2048, 2048) if work == "large" else (520, 696)
            warm_calls = 1 if work == "large" else 6
            image = random.integers(0, 255, (1, *shape)).astype(np.uint8)
            call = lambda: embed(image, session, tile=size)  # noqa: E731
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        times = []
        for _ in range(1 + warm_calls):
            start = time.process_time()
            call()
            times.append(time.process_time() - start)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    result = {"cold": times[0], "warm": statistics.median(times[1:]), "memory": memory / 1024}
    print(json.dumps(result))


def compare_first_calls(repeats=5):
    print("first call of a square; the block at once against blocks that double")
    print("  size  first call to later ones: doubling, at once  memory at once to doubling")
    for size in SIZES:
        found = {"default": [], "roomy": []}
        for _ in range(repeats):
            for arena, results in found.items():
                results.append(measure_alone("square", size, arena))
        ratio = {a: statistics.median(r["cold"] / r["warm"] for r in rs) for a, rs in found.items()}
        memory = {a: statistics.median(r["memory"] for r in rs) for a, rs in found.items()}
        print(
            f"{size:6d}{ratio['default']:34.2f}{ratio['roomy']:9.2f}"
            f"{memory['roomy'] / memory['default']:28.2f}"
            f"   ({memory['roomy']:.0f} and {memory['default']:.0f} MB)",
            flush=True,
        )


def compare_tiles(repeats=5):
    for work, words in (("large", "one image of 2048 x 2048"), ("small", "images of 520 x 696")):
        print(f"{words}: time as a ratio to tiles of 1024")
        found = {size: [] for size in SIZES}
        for _ in range(repeats):
            for size, results in found.items():
                results.append(measure_alone(work, size, "roomy"))
        for size, results in found.items():
            pairs = list(zip(results, found[1024], strict=True))
            cold = [a["cold"] / b["cold"] for a, b in pairs]
            warm = [a["warm"] / b["warm"] for a, b in pairs]
            memory = statistics.median(r["memory"] for r in results)
            print(
                f"{size:6d}  first {describe(cold)}  later {describe(warm)}  {memory:6.0f} MB",
                flush=True,
            )


# --- batches


def compare_batches(repeats=9):
    package = load_package(PACKAGE)
    content = package.read(package.onnx_name)
    sessions = {"one thread": 1, "all threads": count_cores()}
    for shape, n_images in (((128, 128), 16), ((256, 256), 8), ((520, 696), 4), ((1024, 1024), 2)):
        images = np.random.default_rng(0).standard_normal((n_images, 1, *shape), np.float32)
        for words, threads in sessions.items():
            session = plain_session(content, None, threads)
            clock = time.process_time if threads == 1 else time.perf_counter
            runs = {
                "one by one": lambda s=session, i=images: [
                    s.run(None, {"image": image[None]}) for image in i
                ],
                "at once": lambda s=session, i=images: s.run(None, {"image": i}),
            }
            ratios = alternate(runs, clock, repeats)["at once"]
            print(f"{n_images} x {shape} at once to one by one, {words}: {describe(ratios)}")


# --- volumes: no network is shipped, so one of the default widths, with random weights


def compare_volumes():
    import torch

    from spoco_zoo.packaging.graphs import write_onnx
    from spoco_zoo.training.net import PackagedUNet

    net = PackagedUNet(1, 16, (16, 32, 64, 128), ((2, 2, 2),) * 3, foreground_head=True).eval()
    print(f"halo {net.embedding_net.halo}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.onnx"
        write_onnx(net, torch.zeros(1, 1, 17, 17, 17), path)
        for size in (96, 128, 160, 208):
            command = [sys.executable, __file__, "_volume", str(path), str(size)]
            subprocess.run(command, check=True)


def volume_alone(path, size):
    with room._roomy_arena(options := onnxruntime.SessionOptions()):
        options.intra_op_num_threads = 1
        options.enable_mem_pattern = False
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).standard_normal((1, 1, *(size,) * 3), np.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(2):
        start = time.process_time()
        session.run(None, {"image": image})
        times.append(time.process_time() - start)
    memory = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    first, later = (1e9 * t / image.size for t in times)
    print(
        f"{size} cubed: {first:.0f} and {later:.0f} ns a voxel, first and later; "
        f"{memory / 1e6:.0f} MB, {memory / image.size:.0f} bytes a voxel"
    )


# --- half precision


def compare_half(folder):
    """Compare embeddings and instances of float32 with those of float16.

    The CPU runs a float16 network in float32, with rounded weights. To see what a GPU would make
    of it, every result inside the network is rounded to float16 here as well.
    """
    package = load_package(PACKAGE)
    content = package.read(package.onnx_name)
    networks = {
        "float32": content,
        "float16, as the CPU runs it": room.convert_to_half(content),
        "float16, all rounded": round_everything(content),
    }
    sessions = {}
    for name, network in networks.items():
        sessions[name] = EmbeddingSession(package, "cpu")
        # optimisation would take the rounding out again
        plain = attribute("graph_optimization_level", LEVEL.ORT_DISABLE_ALL)
        sessions[name]._session = plain_session(network, plain, count_cores())
    simulated, truth = simulate_nuclei((512, 512), seed=0)
    pairs = [(simulated[None], truth)]
    compare_networks("one simulated image", sessions, pairs)
    names = pair_files(folder / "images", folder / "labels")
    pairs = [(read_image(image, 2).pixels, read_labels(labels)) for image, labels in names]
    compare_networks(f"{len(pairs)} images of {folder.name}", sessions, pairs)


def compare_networks(words, sessions, pairs):
    recipe = next(iter(sessions.values())).package.config.recipe
    scores = {name: [] for name in sessions}
    differences = {name: [] for name in sessions}
    agreement = {name: [] for name in sessions}
    for pixels, truth in pairs:
        found = {name: embed(pixels, session) for name, session in sessions.items()}
        labels = {name: make_instances(e, recipe) for name, e in found.items()}
        for name in sessions:
            difference = np.abs(found[name].embedding - found["float32"].embedding)
            differences[name].append(difference.ravel())
            scores[name].append(score(labels[name], truth))
            agreement[name].append(score(labels[name], labels["float32"]))
    print(words)
    for name in sessions:
        values = np.concatenate(differences[name])
        summary, same = mean_scores(scores[name]), mean_scores(agreement[name])
        print(
            f"  {name:28s}difference of embedding: median {np.median(values):.2g}, "
            f"largest {values.max():.2g}; objects {summary.n_predicted}, "
            f"AP50 {summary.pooled_ap[0]:.4f}, AP50:95 {np.mean(summary.pooled_ap):.4f} "
            f"(means of images {summary.ap50:.4f}, {summary.mean_ap:.4f}); "
            f"against float32 AP50 {same.pooled_ap[0]:.4f}, AP at 0.95 {same.pooled_ap[-1]:.4f}"
        )


def round_everything(content):
    """Round weights, input and every result inside a network to float16; compute in float32."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper, shape_inference

    model = shape_inference.infer_shapes(onnx.load_model_from_string(content))
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            half = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    is_float = {
        value.name
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }

    def rounding(source, target):
        half = f"{target} in float16"
        return [
            helper.make_node("Cast", [source], [half], to=TensorProto.FLOAT16),
            helper.make_node("Cast", [half], [target], to=TensorProto.FLOAT),
        ]

    name = graph.input[0].name
    nodes = rounding(name, f"{name}, rounded")
    for node in graph.node:
        node.input[:] = [f"{name}, rounded" if i == name else i for i in node.input]
        nodes.append(node)
        output = node.output[0]
        if node.op_type != "Constant" and output in is_float:
            node.output[0] = f"{output}, exact"
            nodes += rounding(f"{output}, exact", output)
    del graph.node[:]
    graph.node.extend(nodes)
    return model.SerializeToString()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what")
    parser.add_argument("words", nargs="*")
    given = parser.parse_args()
    match given.what, given.words:
        case "options", []:
            compare_options()
        case "first-calls", []:
            compare_first_calls()
        case "tiles", []:
            compare_tiles()
        case "batches", []:
            compare_batches()
        case "volumes", []:
            compare_volumes()
        case "half", [folder]:
            compare_half(Path(folder))
        case "_alone", [work, size, arena]:
            alone(work, int(size), arena)
        case "_volume", [path, size]:
            volume_alone(path, int(size))
        case _:
            parser.error(__doc__)


if __name__ == "__main__":
    main()
