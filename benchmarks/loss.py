"""Is the loss fast enough: against a loop over instances, in a step of training, and in memory?

    OMP_NUM_THREADS=1 python benchmarks/loss.py loop
    OMP_NUM_THREADS=1 python benchmarks/loss.py steps specs/*.yaml
    OMP_NUM_THREADS=1 python benchmarks/loss.py memory

Time is that of the CPU on one thread, forward and backward, sides taking turns; medians of the
ratios of a round are printed, with their range. `loop` is the loss written from its equations,
one instance after the other, on whole images. What the loss costs depends on the embedding, so
each is tried: *learnt* has its instances 4 and more apart and pixels near their mean, *untrained*
has everything within a tenth, *noise* is without any order.

`steps` takes the parts of a step of training one by one, on made images of nuclei (with `--data`,
on the training images of that folder) and with the batch, crop, network and precision of a spec:
batch (prepared on one thread, as by one worker), network forward, loss on what an untrained
network says and on a learnt embedding, network backward, and the rest (optimiser, clipping,
momentum network).

`memory` gives the peak of a child process, above what it holds before the loss, in multiples of
the embedding's own bytes.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import child
import numpy as np
import torch

from spoco_zoo.labels import UNLABELED
from spoco_zoo.simulation import NucleiSettings, simulate_nuclei
from spoco_zoo.spec import LossSettings, load_spec
from spoco_zoo.training.loss import spoco_loss
from spoco_zoo.training.net import NetOutput

HERE = Path(__file__).resolve()
E = 16
STATES = {"learnt": (2.0, 0.1), "untrained": (0.1, 0.02), "noise": (0.0, 1.0)}  # place, spread
SIZES = [(128, 60), (256, 60), (256, 240), (512, 60), (512, 240)]
WORDS = LossSettings()


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def make_grid(side, count):
    """Give discs on a grid, 1 to count, on background."""
    cells = int(np.ceil(np.sqrt(count)))
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    size = side / cells
    row, column = (y / size).long(), (x / size).long()
    squared = (y - (row + 0.5) * size) ** 2 + (x - (column + 0.5) * size) ** 2
    ids = row * cells + column + 1
    return torch.where((squared < (0.42 * size) ** 2) & (ids <= count), ids, 0)


def embed(labels, state, width=E):
    """Embed labels (b, *space) as (b, e, *space), as the network does in memory."""
    place, spread = STATES[state]
    places = place * torch.randn(len(labels), int(labels.max()) + 1, width, generator=draws(1))
    own = torch.stack([p[one.clamp_min(0)] for p, one in zip(places, labels, strict=True)])
    return (own + spread * torch.randn(own.shape, generator=draws(2))).movedim(-1, 1)


def literal_loss(f, g, labels, words, anchors):
    """Write the loss of one image as its equations: f and g are (e, y, x)."""
    means = {int(i): f[:, labels == i].mean(1) for i in labels.unique()}
    known = [i for i in means if i != UNLABELED]
    instances = [i for i in means if i > 0]

    def soft(embedding, anchor):
        squared = (embedding - anchor[:, None, None]).square().sum(0)
        return torch.exp(-squared / words.two_sigma_squared)

    def dice(s, t):
        return 1 - 2 * (s * t).sum() / (s.square().sum() + t.square().sum())

    total = words.norm_weight * sum(m.norm() for m in means.values()) / len(means)
    for i in known:
        distance = (f[:, labels == i] - means[i][:, None]).norm(dim=0)
        total = total + torch.relu(distance - words.delta_var).square().mean() / len(known)
        for j in known:
            if i != j:
                gap = torch.relu(2 * words.delta_dist - (means[i] - means[j]).norm()).square()
                total = total + gap / (len(known) * (len(known) - 1))
    for i in instances:
        mask = (labels == i).float()
        total = total + dice(soft(f, means[i]), mask) / len(instances)
        if UNLABELED in means:
            distance = (f[:, labels == UNLABELED] - means[i][:, None]).norm(dim=0)
            hinge = torch.relu(words.delta_dist - distance).square().mean()
            total = total + hinge / len(instances)
    if g is not None:
        chosen = draw_literally(f.detach(), g, labels == UNLABELED, words, anchors)
        for y, x in chosen:
            total = total + dice(soft(f, f[:, y, x]), soft(g, g[:, y, x])) / len(chosen)
    return total


def draw_literally(f, g, unlabeled, words, generator):
    """Draw anchors one after the other."""
    chosen, rest = [], unlabeled.clone()
    for _ in range(words.max_anchors):
        candidates = torch.nonzero(rest)
        if len(candidates) < words.volume_ratio * rest.numel():
            break
        place = torch.randint(len(candidates), (), generator=generator)
        y, x = candidates[place]
        for e in (f, g):
            rest &= (e - e[:, y, x][:, None, None]).norm(dim=0) >= words.delta_var
        chosen.append((y, x))
    return chosen


def cpu_seconds(work):
    start = time.process_time()
    work()
    return time.process_time() - start


def tell(ratios):
    """Give the median with the range."""
    return f"{statistics.median(ratios):.3g} ({min(ratios):.3g} to {max(ratios):.3g})"


def compare_with_loop(rounds):
    for labelled in ("all labelled", "half labelled, consistency"):
        sparse = labelled != "all labelled"
        for state in STATES:
            labels = make_grid(256, 120 if sparse else 60)
            embedding = embed(labels[None], state)
            twin = embedding + 0.02 * torch.randn(embedding.shape, generator=draws(3))
            twin = twin if sparse else None
            if sparse:
                labels = torch.where((labels > 0) & (labels <= 60), labels, UNLABELED)

            def loop(embedding=embedding, twin=twin, labels=labels):
                leaf = embedding.clone().requires_grad_()
                g = None if twin is None else twin[0]
                literal_loss(leaf[0], g, labels, WORDS, draws()).backward()

            def ours(embedding=embedding, twin=twin, labels=labels):
                leaf = embedding.clone().requires_grad_()
                output = NetOutput(leaf, None)
                spoco_loss(output, twin, labels[None], WORDS, [draws()]).total.backward()

            for side in (loop, ours):
                side()
            ratios = [
                cpu_seconds(loop) / statistics.median(cpu_seconds(ours) for _ in range(3))
                for _ in range(rounds)
            ]
            print(f"{labelled}, {state}: loop / ours {tell(ratios)}", flush=True)


def make_samples(spec):
    """Make images twice as large as a crop, labelled as the spec has it."""
    from spoco_zoo.training.samples import Sample, choose_instances, to_states

    nuclei = NucleiSettings(radius_mean=9.0, z_spacing=2.0)
    samples = []
    for seed in range(2):
        shape = tuple(2 * size for size in spec.schedule.crop)
        image, labels = simulate_nuclei(shape, seed, nuclei)
        kept = choose_instances(labels, spec.data.instance_ratio, 0, str(seed))
        states = to_states(labels, kept, spec.data.label_zero)
        pixels = ((image - image.mean()) / image.std()).astype(np.float32)[None]
        samples.append(Sample(str(seed), pixels, states, kept))
    return samples


def time_step(spec, run, batches, step):
    """Take one step apart; give seconds of the CPU for each part."""
    from spoco_zoo.training.schedule import learning_rate

    seconds, net = {}, run.pair.embedding_net
    start = time.process_time()

    def lap(name):
        nonlocal start
        seconds[name] = time.process_time() - start
        start = time.process_time()

    batch = batches[step]
    lap("batch")
    with torch.autocast("cpu", dtype=run.precision, enabled=run.precision != torch.float32):
        output, twin = net(batch.view_f), None
        if spec.loss.consistency_weight and bool((batch.labels < 0).any()):
            with torch.no_grad():
                twin = net.split(run.pair.momentum_net(batch.view_g).float()).embedding
    lap("forward")
    leaf = output.detach().float().requires_grad_()
    split = net.split(leaf)
    spoco_loss(
        split, twin, batch.labels, spec.loss, [draws() for _ in batch.labels]
    ).total.backward()
    lap("loss, untrained")
    output.backward(leaf.grad.to(output.dtype))
    lap("backward")
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(spec, step)
    torch.nn.utils.clip_grad_norm_(net.parameters(), spec.schedule.clip_norm)
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.pair.update(0.9)
    lap("rest")
    learnt = embed(batch.labels, "learnt", spec.net.embedding_dim)
    logit = None if split.foreground is None else split.foreground.detach().requires_grad_()
    leaf = learnt.requires_grad_()
    start = time.process_time()
    twin = None if twin is None else learnt.detach() + 0.01
    output = NetOutput(leaf, logit)
    spoco_loss(
        output, twin, batch.labels, spec.loss, [draws() for _ in batch.labels]
    ).total.backward()
    lap("loss, learnt")
    return seconds


def take_steps_apart(specs, rounds, data):
    from spoco_zoo.training.loop import _Run
    from spoco_zoo.training.options import TrainOptions
    from spoco_zoo.training.ranks import Ranks
    from spoco_zoo.training.samples import SparseSamples
    from spoco_zoo.training.splits import read_splits

    for path in specs:
        spec = load_spec(path)
        net = spec.net.model_copy(update={"in_channels": 1})
        spec = spec.model_copy(update={"net": net})
        samples = read_splits(spec, data)[1] if data else make_samples(spec)
        with tempfile.TemporaryDirectory() as folder:
            place = Ranks(), torch.device("cpu")
            run = _Run.open(spec, Path(folder), place, TrainOptions(device="cpu"))
        batches = SparseSamples(samples, spec)
        time_step(spec, run, batches, 0)
        steps = [time_step(spec, run, batches, n) for n in range(1, rounds + 1)]
        print(path.stem)
        for state in ("untrained", "learnt"):
            loss = f"loss, {state}"
            parts = ["forward", loss, "backward", "rest"]
            whole = [sum(step[p] for p in parts) for step in steps]
            shares = [step[loss] / total for step, total in zip(steps, whole, strict=True)]
            print(f"  {loss} / step: {tell(shares)}")
        for part in ("forward", "backward", "rest", "batch"):
            shares = [step[part] / total for step, total in zip(steps, whole, strict=True)]
            print(f"  {part} / step: {tell(shares)}", flush=True)


def compare_memory():
    with tempfile.TemporaryDirectory() as folder:
        for state in STATES:
            for side, count in SIZES:
                target = Path(folder) / f"{state}-{side}-{count}"
                child.run(HERE, "peak", state, side, count, target)
                (record,) = child.records(target)
                print(f"{state}, {side} x {side}, {count} objects: {record['multiple']:.2f}")


def measure_peak(state, side, count, target):
    """Half of the instances unlabeled, and consistency: every term is at work."""
    labels = make_grid(side, 2 * count)[None]
    embedding = embed(labels, state)
    labels = torch.where((labels > 0) & (labels <= count), labels, UNLABELED)
    twin = embedding + 0.02
    small = make_grid(32, 4)[None]
    for labelled, leaf, g in ((small, embed(small, state), None), (labels, embedding, twin)):
        leaf.requires_grad_()
        before = child.resident_bytes()
        terms = spoco_loss(NetOutput(leaf, None), g, labelled, WORDS, [draws() for _ in labelled])
        terms.total.backward()
    peak = child.peak_bytes() - before
    child.append(target, multiple=peak / (embedding.numel() * embedding.element_size()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    modes = parser.add_subparsers(dest="mode", required=True)
    modes.add_parser("loop").add_argument("--rounds", type=int, default=5)
    steps = modes.add_parser("steps")
    steps.add_argument("specs", nargs="+", type=Path)
    steps.add_argument("--rounds", type=int, default=5)
    steps.add_argument("--data", type=Path)
    modes.add_parser("memory")
    peak = modes.add_parser("peak")  # a child process of `memory`
    for name, kind in (("state", str), ("side", int), ("count", int), ("target", Path)):
        peak.add_argument(name, type=kind)
    words = parser.parse_args()
    torch.set_num_threads(1)
    match words.mode:
        case "loop":
            compare_with_loop(words.rounds)
        case "steps":
            take_steps_apart(words.specs, words.rounds, words.data)
        case "memory":
            compare_memory()
        case "peak":
            measure_peak(words.state, words.side, words.count, words.target)


if __name__ == "__main__":
    main()
