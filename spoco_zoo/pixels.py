"""The embedding of a part of an image, and the dense steps of clustering, where they are kept.

Clustering asks four things of many pixels: their embeddings, how far they are from a centre,
which centre is nearest, and how far they are from their neighbours. `HostPixels` answers with
NumPy; an embedding that lies on a GPU answers there (`device`), so that it never has to leave.
A pixel is named by its place in the flat array of the part.
"""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from spoco_zoo.modes import Centers, Points, nearest_center
from spoco_zoo.tiling import Box

Places = Int[np.ndarray, " n"]
Mask = Bool[np.ndarray, "*space"]


@runtime_checkable
class Pixels(Protocol):
    """An embedding `(e, *space)` that answers questions about its pixels."""

    @property
    def dim(self) -> int:
        """Numbers per pixel, e."""

    def crop(self, box: Box) -> "Pixels":
        """The same pixels within a box."""

    def is_finite(self) -> bool:
        """Whether there is no NaN and no infinity."""

    def points(self, places: Places) -> Points:
        """Embeddings of some pixels."""

    def squares(self, places: Places, index: Places, centers: Centers) -> Float[np.ndarray, " n"]:
        """Squared distance of each pixel from the centre that its index names."""

    def nearest(
        self, places: Places, centers: Centers, reach: Float[np.ndarray, " m"]
    ) -> Int[np.ndarray, " n"]:
        """Nearest centre of each pixel, -1 where that centre does not reach it."""

    def steps(self, mask: Mask) -> Float[np.ndarray, "*space"]:
        """Distance of each pixel from its nearer neighbour in the mask, on the worst axis.

        Beside a sharp border the nearer neighbour is that of the same instance, so the distance
        is small; on a slope both are far. Without a neighbour in the mask it is 0.
        """


class HostPixels:
    """An embedding in memory."""

    def __init__(self, embedding: Float[np.ndarray, "e *space"]) -> None:
        """Take an array; it is not copied."""
        self._embedding = embedding

    @property
    def dim(self) -> int:
        """Numbers per pixel, e."""
        return len(self._embedding)

    def crop(self, box: Box) -> "HostPixels":
        """The same pixels within a box."""
        return HostPixels(self._embedding[(slice(None), *box)])

    def is_finite(self) -> bool:
        """Whether there is no NaN and no infinity."""
        # the sum of a plane is cheap and says no to every NaN; it may also overflow by itself
        with np.errstate(over="ignore", invalid="ignore"):
            return all(
                np.isfinite(plane.sum()) or bool(np.isfinite(plane).all())
                for plane in self._embedding
            )

    def points(self, places: Places) -> Points:
        """Embeddings of some pixels."""
        if self._embedding.flags.c_contiguous:
            points = self._embedding.reshape(self.dim, -1).take(places, axis=1)
        else:  # a box of it: making it flat would copy all of it
            where = np.unravel_index(places, self._embedding.shape[1:])
            points = np.moveaxis(self._embedding, 0, -1)[where].T
        return np.ascontiguousarray(points.T)

    def squares(self, places: Places, index: Places, centers: Centers) -> Float[np.ndarray, " n"]:
        """Squared distance of each pixel from the centre that its index names."""
        squares = np.zeros(len(places), np.float32)
        for values, column in zip(self._embedding, centers.T, strict=True):
            offset = values.take(places)
            offset -= column.take(index)
            offset *= offset
            squares += offset
        return squares

    def nearest(
        self, places: Places, centers: Centers, reach: Float[np.ndarray, " m"]
    ) -> Int[np.ndarray, " n"]:
        """Nearest centre of each pixel, -1 where that centre does not reach it."""
        return nearest_center(self.points(places), centers, reach)

    def steps(self, mask: Mask) -> Float[np.ndarray, "*space"]:
        """Distance of each pixel from its nearer neighbour in the mask, on the worst axis."""
        worst = np.zeros(mask.shape, np.float32)
        for axis in range(mask.ndim):
            before = (slice(None),) * axis + (slice(None, -1),)
            after = (slice(None),) * axis + (slice(1, None),)
            offset = (
                self._embedding[(slice(None), *after)] - self._embedding[(slice(None), *before)]
            )
            step = np.sqrt(np.einsum("e...,e...->...", offset, offset))
            step[~(mask[before] & mask[after])] = np.inf
            nearer = np.full(mask.shape, np.inf, np.float32)
            nearer[before] = step
            nearer[after] = np.minimum(nearer[after], step)
            nearer[np.isinf(nearer)] = 0
            worst = np.maximum(worst, nearer)
        return worst
