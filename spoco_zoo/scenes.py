"""Simulated images of what the networks of the zoo are for, each with its true labels.

Covers, samples and test tensors of packages show these, so no picture of anybody is handed on.
They are tuned by eye to resemble what a network was trained on, no more: a scene shows that a
package works, never how well it does.

    nuclei       fluorescent nuclei, as in `simulation`; images and volumes
    dim_nuclei   the same in a noisy, anisotropic confocal volume
    phase_cells  adherent cells with a bright halo in phase contrast; images
    axons        dark discs within bright rings of myelin in electron microscopy; images
    neurons      cells that fill the volume, between dark membranes, in electron microscopy; volumes
"""

from collections.abc import Callable, Mapping, Sequence
from math import pi, prod

import numpy as np
from jaxtyping import Float, UInt8, UInt32
from scipy import ndimage

from spoco_zoo.errors import SettingError
from spoco_zoo.labels import relabel
from spoco_zoo.simulation import NucleiSettings, simulate_nuclei
from spoco_zoo.spec import SceneName

Picture = tuple[UInt8[np.ndarray, "*space"], UInt32[np.ndarray, "*space"]]

_DIM = NucleiSettings(
    density=0.2,
    radius_mean=11.0,
    radius_spread=0.3,
    z_spacing=2.2,
    blur_sigma=1.5,
    defocus=0.6,
    background=0.25,
    haze=0.15,
    photons=12.0,
    exposure=0.25,
)


def simulate_scene(name: SceneName, shape: Sequence[int], seed: int) -> Picture:
    """Make an image and its labels 1..n; the same seed makes the same again.

    Raises:
        SettingError: The scene has another number of axes than `shape`, or a size is not positive.
    """
    make, axes = _SCENES[name]
    if len(shape) not in axes or min(shape) < 1:
        raise SettingError(
            f"shape is {tuple(shape)}: expected {' or '.join(map(str, axes))} positive sizes "
            f"for a scene of {name}"
        )
    return make(tuple(shape), seed)


def _nuclei(shape: tuple[int, ...], seed: int) -> Picture:
    image, labels = simulate_nuclei(shape, seed)
    return image.astype(np.uint8), labels


def _dim_nuclei(shape: tuple[int, ...], seed: int) -> Picture:
    image, labels = simulate_nuclei(shape, seed, _DIM)
    return image.astype(np.uint8), labels


def _phase_cells(shape: tuple[int, ...], seed: int) -> Picture:
    """Spread cells with a few corners: dark within, bright around, spotted in the middle."""
    rng = np.random.default_rng(seed)
    labels, depth = _place_outlines(shape, rng, area=2600.0, density=0.22, draw=_draw_spread)
    inside = (labels > 0).astype(np.float32)
    near = _blur(inside, 4.0)
    halo = np.maximum(near - 0.1, 0) * (1 - _blur(inside, 0.7))
    rim = (1 - _blur(inside, 2.5)) * inside
    spots = np.maximum(_noise(shape, 2.2, rng) - 1.1, 0) * np.clip(4 * depth, 0, 1)
    streaks = _noise(shape, 2.0, rng)
    light = 122 + 2 * _noise(shape, 30.0, rng) + 2 * _noise(shape, 1.5, rng)
    light += 1.5 * rng.standard_normal(shape)
    light += 90 * halo * (1 + 0.3 * _noise(shape, 4.0, rng)) + 55 * rim * _noise(shape, 3.0, rng)
    light += inside * (20 * streaks - 4) - 35 * spots
    debris = np.maximum(_noise(shape, 1.6, rng) - 3.1, 0) * (1 - inside)
    return _to_grey(light - 60 * debris), labels


def _axons(shape: tuple[int, ...], seed: int) -> Picture:
    """Dark discs of very unequal size, each in a bright ring, in grey tissue."""
    rng = np.random.default_rng(seed)
    labels, _ = _place_outlines(shape, rng, area=260.0, density=0.5, draw=_draw_axon, gap=7.0)
    distance, nearest = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    sizes = np.bincount(labels.ravel(), minlength=2).astype(np.float32)
    thickness = 2 + 0.35 * np.sqrt(sizes / pi)
    ring = (labels == 0) & (distance <= thickness[labels[tuple(nearest)]])
    tissue = 118 + 34 * _noise(shape, 1.8, rng)
    light = np.where(ring, 205 + 12 * _noise(shape, 1.2, rng), tissue)
    light = np.where(labels > 0, 52 + 14 * _noise(shape, 2.5, rng), light)
    light = _blur(light.astype(np.float32), 0.8) + 14 * rng.standard_normal(shape)
    return _to_grey(light), labels


def _neurons(shape: tuple[int, ...], seed: int) -> Picture:
    """Cells of unequal size that fill the volume, with a dark membrane between any two."""
    rng = np.random.default_rng(seed)
    count = max(2, round(prod(shape) / 9000))
    points = rng.uniform(0, 1, (count, 3)) * shape
    pull = 14 * rng.standard_exponential(count)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(np.float32)
    grid += np.stack([7 * _noise(shape, 9.0, rng) for _ in range(3)])
    best = np.full(shape, np.inf, np.float32)
    labels = np.zeros(shape, np.uint32)
    for number, (point, reach) in enumerate(zip(points, pull, strict=True), start=1):
        distance = np.sqrt(((grid - point.reshape(3, 1, 1, 1)) ** 2).sum(0)) - reach
        is_nearer = distance < best
        labels[is_nearer], best[is_nearer] = number, distance[is_nearer]
    labels = _split(labels)
    low = ndimage.minimum_filter(labels, 3)
    membrane = _blur((low != ndimage.maximum_filter(labels, 3)).astype(np.float32), 0.7)
    tone = rng.uniform(125, 175, int(labels.max()) + 1)[labels]
    light = tone + 9 * _noise(shape, 2.0, rng) - 95 * membrane + 10 * rng.standard_normal(shape)
    return _to_grey(light), labels


_SCENES: Mapping[SceneName, tuple[Callable[[tuple[int, ...], int], Picture], tuple[int, ...]]] = {
    "nuclei": (_nuclei, (2, 3)),
    "dim_nuclei": (_dim_nuclei, (3,)),
    "phase_cells": (_phase_cells, (2,)),
    "axons": (_axons, (2,)),
    "neurons": (_neurons, (3,)),
}


def _place_outlines(
    shape: tuple[int, ...],
    rng: np.random.Generator,
    *,
    area: float,
    density: float,
    draw: Callable[[np.random.Generator, float], Float[np.ndarray, "h w"]],
    gap: float = 0.0,
) -> tuple[UInt32[np.ndarray, "*space"], Float[np.ndarray, "*space"]]:
    """Place shapes one by one where they touch none; labels, and how deep a pixel lies in its own.

    Args:
        shape: (y, x).
        rng: Draws sizes and places.
        area: Of a typical shape, in pixels.
        density: Part of the image that shapes are tried for.
        draw: Makes a shape of about this area in a box: 1 in the middle, 0 outside.
        gap: Least pixels between two shapes.
    """
    labels = np.zeros(shape, np.uint32)
    depth = np.zeros(shape, np.float32)
    areas = area * np.exp(0.9 * rng.standard_normal(max(1, round(density * prod(shape) / area))))
    around = 2 * int(np.ceil(gap)) + 1
    for size in sorted(areas.clip(area / 8, area * 8), reverse=True):  # large ones need room
        part = draw(rng, float(size))
        taken = ndimage.maximum_filter(part > 0, around)
        for _ in range(20):
            corner = [
                int(rng.integers(-n // 2, s - n // 2))
                for n, s in zip(part.shape, shape, strict=True)
            ]
            start = [max(c, 0) for c in corner]
            stop = [min(c + n, s) for c, n, s in zip(corner, part.shape, shape, strict=True)]
            here = tuple(map(slice, start, stop))
            own = tuple(slice(a - c, b - c) for a, b, c in zip(start, stop, corner, strict=True))
            if not labels[here][taken[own]].any():
                labels[here][part[own] > 0] = labels.max() + 1
                depth[here] = np.maximum(depth[here], part[own])
                break
    return _split(labels), depth


def _draw_spread(rng: np.random.Generator, area: float) -> Float[np.ndarray, "h w"]:
    """A cell that holds on at two to five corners."""
    corners = rng.uniform(0, 2 * pi, rng.integers(2, 6))
    heights = rng.uniform(0.4, 1.6, len(corners))

    def outline(angle: np.ndarray) -> np.ndarray:
        near = np.exp(6 * (np.cos(angle[..., None] - corners) - 1))
        return np.asarray(0.7 + (near * heights).sum(-1))

    return _draw(outline, area, 2.4, rng)


def _draw_axon(rng: np.random.Generator, area: float) -> Float[np.ndarray, "h w"]:
    """A bent disc."""
    waves = rng.uniform(0, 2 * pi, 3)

    def outline(angle: np.ndarray) -> np.ndarray:
        bumps = [np.cos((n + 2) * angle + phase) / (n + 2) for n, phase in enumerate(waves)]
        return np.asarray(1 + 0.2 * sum(bumps))

    return _draw(outline, area, 1.3, rng)


def _draw(
    outline: Callable[[np.ndarray], np.ndarray],
    area: float,
    stretch: float,
    rng: np.random.Generator,
) -> Float[np.ndarray, "h w"]:
    """Fill an outline, a radius for every angle, stretched and turned: 1 in its middle."""
    radius = np.sqrt(area / pi)
    reach = int(np.ceil(4.5 * radius)) + 1  # of the longest: nothing is cut off
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1] / radius
    turn = rng.uniform(0, 2 * pi)
    long = stretch ** rng.uniform(0, 0.5)
    y, x = (
        (y * np.cos(turn) - x * np.sin(turn)) * long,
        (y * np.sin(turn) + x * np.cos(turn)) / long,
    )
    depth = 1 - np.hypot(y, x) / outline(np.arctan2(y, x))
    depth = np.maximum(depth, 0).astype(np.float32)
    inside = ndimage.find_objects((depth > 0).astype(int))[0]
    return np.asarray(depth[inside])


def _split(labels: UInt32[np.ndarray, "*space"]) -> UInt32[np.ndarray, "*space"]:
    """Number the connected pieces of labels 1..n."""
    pieces = np.zeros_like(labels)
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        found, _ = ndimage.label(labels[box] == number)
        pieces[box][found > 0] = found[found > 0] + pieces.max()
    return np.asarray(relabel(pieces), np.uint32)


def _noise(
    shape: tuple[int, ...], sigma: float, rng: np.random.Generator
) -> Float[np.ndarray, "*space"]:
    """Low-pass noise of mean 0 and spread 1."""
    field = _blur(rng.standard_normal(shape).astype(np.float32), sigma)
    return np.asarray((field - field.mean()) / max(float(field.std()), 1e-6))


def _blur(light: Float[np.ndarray, "*space"], sigma: float) -> Float[np.ndarray, "*space"]:
    return np.asarray(ndimage.gaussian_filter(light, sigma, truncate=3))


def _to_grey(light: Float[np.ndarray, "*space"]) -> UInt8[np.ndarray, "*space"]:
    return np.asarray(np.rint(light).clip(0, 255), np.uint8)
