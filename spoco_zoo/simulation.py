"""Simulate fluorescence nuclei in 2D and 3D, with their true labels.

Made for examples and tests that need an image with a known answer and no download. A picture is
made in the order in which a microscope makes one:

    place    smooth star-shaped nuclei, apart or touching      ──► labels, the truth
    stain    brightness per nucleus, chromatin inside          ──► light
    observe  blur, haze, uneven illumination, photons, camera  ──► image

Where two nuclei meet, a pixel belongs to the one in which it lies deeper: labels never overlap.
The numbers are tuned by eye to look like the fluorescence images of the Data Science Bowl 2018,
but no pixel of them is in here. Light is measured in units of a typical nucleus.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain, count
from math import ceil, inf, pi, prod

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt16, UInt32
from scipy import ndimage

from spoco_zoo.errors import SettingError

Box = tuple[slice, ...]
Grey = UInt8[np.ndarray, "*space"] | UInt16[np.ndarray, "*space"]

_TRIES = 30  # positions tried for a nucleus before it is left out
_MOST_SHARED = 0.1  # part of a new nucleus that may lie on its neighbours before they are cut
_LIMITS = {
    "density": (0, 1),
    "radius_mean": (1, inf),
    "elongation": (1, inf),
    "irregularity": (0, 1),
    "clustering": (0, 1),
    "z_spacing": (0.1, inf),
    "defocus": (0, 1),
    "photons": (1, inf),
}


@dataclass(frozen=True, slots=True)
class NucleiSettings:
    """What the nuclei and the microscope are like; lengths in pixels of the last axis.

    Attributes:
        count: nuclei to place, where there is room; None for as many as `density` asks for.
        density: part of the image that nuclei would cover, had they all room.
        radius_mean: radius of a typical nucleus.
        radius_spread: spread of the radius, as a part of it.
        elongation: longest over shortest diameter of a typical nucleus, 1 or more.
        irregularity: height of the bumps of an outline, as a part of the radius.
        clustering: part of the nuclei that is placed touching another.
        z_spacing: step between slices of a volume.
        brightness_spread: spread of the brightness between nuclei.
        texture: contrast of the chromatin inside a nucleus.
        blur_sigma: width of the point spread function; twice as wide along z.
        defocus: part of the light of the worst placed nuclei that is out of focus.
        background: light where there is no nucleus.
        haze: light scattered around nuclei from out of focus.
        photons: photons from a pixel of a typical nucleus; fewer make more shot noise.
        noise_sigma: noise of the camera.
        exposure: grey value of a typical nucleus, as a part of the largest one.
        bit_depth: 8 or 16.
    """

    count: int | None = None
    density: float = 0.14
    radius_mean: float = 10.0
    radius_spread: float = 0.2
    elongation: float = 1.25
    irregularity: float = 0.08
    clustering: float = 0.2
    z_spacing: float = 1.0
    brightness_spread: float = 0.3
    texture: float = 0.3
    blur_sigma: float = 1.2
    defocus: float = 0.5
    background: float = 0.07
    haze: float = 0.1
    photons: float = 800.0
    noise_sigma: float = 0.01
    exposure: float = 0.25
    bit_depth: int = 8

    def __post_init__(self) -> None:
        if self.bit_depth not in (8, 16):
            raise SettingError(f"bit_depth is {self.bit_depth}, but must be 8 or 16")
        for name in (field.name for field in fields(self) if field.name != "bit_depth"):
            value = getattr(self, name)
            least, most = _LIMITS.get(name, (0, inf))
            if value is not None and not least <= value <= min(most, 1e9):
                limits = f"from {least} to {most}" if most < inf else f"{least} or more"
                raise SettingError(f"{name} is {value}, but must be {limits}")


TYPICAL_NUCLEI = NucleiSettings()


def simulate_nuclei(
    shape: Sequence[int], seed: int, settings: NucleiSettings = TYPICAL_NUCLEI
) -> tuple[Grey, UInt32[np.ndarray, "*space"]]:
    """Make an image of nuclei and its labels; the same seed makes the same again.

    Labels are 1..n without gaps, each one connected piece, and are the truth before blur.

    Raises:
        SettingError: `shape` is not the shape of an image or a volume.
    """
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise SettingError(
            f"shape is {tuple(shape)}, but must be (y, x) or (z, y, x) of positive sizes"
        )
    rng = np.random.default_rng(seed)
    labels, depth = _place(tuple(shape), rng, settings)
    in_focus, out_of_focus = _stain(labels, depth, rng, settings)
    return _observe(in_focus, out_of_focus, rng, settings), labels


def _place(
    shape: tuple[int, ...], rng: np.random.Generator, settings: NucleiSettings
) -> tuple[UInt32[np.ndarray, "*space"], Float[np.ndarray, "*space"]]:
    """Place nuclei one by one; give labels and how deep in its nucleus each pixel lies."""
    labels = np.zeros(shape, np.uint32)
    depth = np.zeros(shape, np.float32)
    centers: list[Int[np.ndarray, " n"]] = []
    for _ in range(_count(shape, settings)):
        nucleus = _grow(rng, settings, len(shape))
        positions = _positions_apart(labels, nucleus > 0, rng)
        if centers and rng.random() < settings.clustering:
            positions = chain(_positions_touching(labels, nucleus > 0, centers, rng), positions)
        if (center := next(positions, None)) is None:
            continue
        centers.append(center)
        box, part = _overlap(center, nucleus.shape, shape)
        is_deeper = nucleus[part] > depth[box]
        labels[box][is_deeper] = len(centers)
        depth[box][is_deeper] = nucleus[part][is_deeper]
    _keep_piece_at_center(labels, centers)
    return labels, depth


def _count(shape: tuple[int, ...], settings: NucleiSettings) -> int:
    """Give the number of nuclei to place."""
    if settings.count is not None:
        return settings.count
    depth = 4 / 3 * settings.radius_mean / settings.z_spacing if len(shape) == 3 else 1
    return max(1, round(settings.density * prod(shape) / (pi * settings.radius_mean**2 * depth)))


def _grow(
    rng: np.random.Generator, settings: NucleiSettings, axes: int
) -> Float[np.ndarray, "*space"]:
    """Make one nucleus in a box around its center: 1 in the middle, 0 from its outline on."""
    radius = settings.radius_mean * np.exp(settings.radius_spread * rng.standard_normal())
    radius = np.clip(radius, settings.radius_mean / 2, settings.radius_mean * 2)
    ratio = 1 + (settings.elongation - 1) * rng.uniform(0.5, 1.5)
    radii = radius * ratio ** np.linspace(0.5, -0.5, axes)
    step = (settings.z_spacing, 1.0, 1.0)[-axes:]
    # one pixel more on each side, so that the outline can be grown by one
    reach = [ceil(radii[0] * (1 + settings.irregularity) / s) + 1 for s in step]
    sides = [s * np.arange(-r, r + 1) for s, r in zip(step, reach, strict=True)]
    offset = np.stack(np.meshgrid(*sides, indexing="ij"))
    rotation = np.linalg.qr(rng.standard_normal((axes, axes)))[0] / radii[:, None]
    offset = np.tensordot(rotation, offset, 1)
    distance = np.sqrt((offset**2).sum(0))
    direction = offset / np.maximum(distance, 1e-6)
    # bumps: slow waves over the directions, each along an axis of its own
    waves = rng.standard_normal((4, axes))
    waves *= rng.uniform(2, 7, (4, 1)) / np.linalg.norm(waves, axis=1, keepdims=True)
    phase = rng.uniform(0, 2 * pi, (4,) + (1,) * axes)
    bumps = np.cos(np.tensordot(waves, direction, 1) + phase).mean(0)
    depth = 1 - distance / (1 + settings.irregularity * bumps)
    return np.asarray(np.maximum(0, depth), np.float32)


def _positions_apart(
    labels: UInt32[np.ndarray, "*space"],
    nucleus: Bool[np.ndarray, "..."],
    rng: np.random.Generator,
) -> Iterator[Int[np.ndarray, " n"]]:
    """Yield centers where a nucleus touches no other."""
    grown = ndimage.binary_dilation(nucleus, np.ones((3,) * labels.ndim))
    for _ in range(_TRIES):
        center = rng.integers(labels.shape)
        box, part = _overlap(center, grown.shape, labels.shape)
        if not labels[box][grown[part]].any():
            yield center


def _positions_touching(
    labels: UInt32[np.ndarray, "*space"],
    nucleus: Bool[np.ndarray, "..."],
    centers: Sequence[Int[np.ndarray, " n"]],
    rng: np.random.Generator,
) -> Iterator[Int[np.ndarray, " n"]]:
    """Yield centers where a nucleus, pushed out of another, still lies on it a little."""
    for _ in range(_TRIES):
        start = centers[int(rng.integers(len(centers)))]
        direction = rng.standard_normal(labels.ndim)
        direction /= np.linalg.norm(direction)
        for distance in count(1):
            center = np.rint(start + distance * direction).astype(np.int64)
            if (center < 0).any() or (center >= labels.shape).any():
                break
            box, part = _overlap(center, nucleus.shape, labels.shape)
            shared = labels[box][nucleus[part]] > 0
            if shared.mean() <= _MOST_SHARED:
                if shared.any() and not labels[tuple(center)]:
                    yield center
                break


def _overlap(
    center: Int[np.ndarray, " n"], size: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[Box, Box]:
    """Give the part of the array that a box around `center` covers, and that part of the box."""
    first = [int(c) - s // 2 for c, s in zip(center, size, strict=True)]
    start = [max(0, f) for f in first]
    stop = [min(n, f + s) for n, f, s in zip(shape, first, size, strict=True)]
    part = tuple(slice(a - f, b - f) for a, b, f in zip(start, stop, first, strict=True))
    return tuple(map(slice, start, stop)), part


def _keep_piece_at_center(
    labels: UInt32[np.ndarray, "*space"], centers: Sequence[Int[np.ndarray, " n"]]
) -> None:
    """Erase, in place, what a cut has parted from the center of its nucleus."""
    boxes = ndimage.find_objects(labels)
    for label, (box, center) in enumerate(zip(boxes, centers, strict=True), start=1):
        is_own = labels[box] == label
        pieces, _ = ndimage.label(is_own)
        inside = tuple(int(c) - side.start for c, side in zip(center, box, strict=True))
        labels[box][is_own & (pieces != pieces[inside])] = 0


def _stain(
    labels: UInt32[np.ndarray, "*space"],
    depth: Float[np.ndarray, "*space"],
    rng: np.random.Generator,
    settings: NucleiSettings,
) -> tuple[Float[np.ndarray, "*space"], Float[np.ndarray, "*space"]]:
    """Give every nucleus its brightness and chromatin; return light in and out of focus."""
    size = np.bincount(labels.ravel(), minlength=2)[1:].clip(1)
    brightness = np.exp(settings.brightness_spread * rng.standard_normal(len(size)))
    # small nuclei are condensed and brighter
    brightness = np.append(0, brightness * (size.mean() / size) ** 0.25)
    clumps = _smooth_field(labels.shape, 0.25 * settings.radius_mean, rng, settings)
    grains = _smooth_field(labels.shape, 0.1 * settings.radius_mean, rng, settings)
    chromatin = np.exp(0.7 * settings.texture * (clumps + grains))
    # a nucleus is a lens: thinner, so darker, towards its outline
    thickness = 0.6 + 0.4 * np.sqrt(1 - (1 - depth) ** 2)
    light = (brightness[labels] * chromatin * thickness).astype(np.float32)
    # most nuclei lie near the focal plane, some do not
    defocus = settings.defocus * rng.random(len(brightness)) ** 2
    out_of_focus = light * defocus.astype(np.float32)[labels]
    return light - out_of_focus, out_of_focus


def _observe(
    in_focus: Float[np.ndarray, "*space"],
    out_of_focus: Float[np.ndarray, "*space"],
    rng: np.random.Generator,
    settings: NucleiSettings,
) -> Grey:
    """Take the picture: optics first, then photons, then the camera."""
    light = in_focus + out_of_focus
    seen = _blur(in_focus, settings.blur_sigma, settings, axial=2.0)
    seen += _blur(out_of_focus, 0.3 * settings.radius_mean, settings, axial=2.0)
    for radii in (0.6, 1.5):
        seen += settings.haze * _blur(light, radii * settings.radius_mean, settings, axial=2.0)
    uneven = _smooth_field(light.shape, max(light.shape) / 3, rng, settings)
    seen *= 1 + 0.07 * uneven.clip(-3, 3)
    seen += settings.background * (1 + 0.1 * uneven.clip(-3, 3))
    seen = rng.poisson(seen * settings.photons) / settings.photons
    seen += settings.noise_sigma * rng.standard_normal(seen.shape)
    dtype = np.uint8 if settings.bit_depth == 8 else np.uint16
    largest = np.iinfo(dtype).max
    grey: Grey = np.rint(seen * settings.exposure * largest).clip(0, largest).astype(dtype)
    return grey


def _smooth_field(
    shape: tuple[int, ...], sigma: float, rng: np.random.Generator, settings: NucleiSettings
) -> Float[np.ndarray, "*space"]:
    """Make low-pass noise of mean 0 and spread 1."""
    field = _blur(rng.standard_normal(shape).astype(np.float32), sigma, settings)
    field -= field.mean()
    field /= max(float(field.std()), 1e-6)
    return field


def _blur(
    light: Float[np.ndarray, "*space"], sigma: float, settings: NucleiSettings, axial: float = 1
) -> Float[np.ndarray, "*space"]:
    """Blur with a Gaussian, `axial` times as wide along z."""
    sigmas = (axial * sigma / settings.z_spacing, sigma, sigma)[-light.ndim :]
    blurred: Float[np.ndarray, "*space"] = ndimage.gaussian_filter(light, sigmas, truncate=3)
    return blurred
