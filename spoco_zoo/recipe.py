"""How an embedding becomes instances: all numbers that decide, as frozen settings.

A recipe is fitted at the end of training and kept in every package.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from spoco_zoo.errors import SettingError
from spoco_zoo.foreground import Everywhere, Foreground

_WINDOW = {2: 256, 3: 64}  # pixels per axis where the recipe says nothing


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class MeanShift(_Settings):
    """Flat-kernel mean-shift (Comaniciu and Meer 2002) on the embeddings."""

    method: Literal["mean_shift"] = "mean_shift"
    bandwidth: float = Field(0.5, gt=0, description="radius of a cluster, in embedding units")
    merge_distance: float = Field(
        0.0, ge=0, description="touching clusters whose centres are nearer are joined"
    )


class Hdbscan(_Settings):
    """HDBSCAN (McInnes et al. 2017): clusters of any density, the rest is noise."""

    method: Literal["hdbscan"] = "hdbscan"
    epsilon: float = Field(0.5, ge=0, description="clusters nearer than this are not split")
    min_samples: int | None = Field(None, ge=1, description="density smoothing, in pixels")


class Consistency(_Settings):
    """Mean-shift on f, keeping the clusters that g finds again (Wolny et al. 2022, sec. 3.4)."""

    method: Literal["consistency"] = "consistency"
    bandwidth: float = Field(0.5, gt=0, description="radius of a cluster, in embedding units")
    iou_threshold: float = Field(0.6, ge=0, le=1, description="least median agreement of f and g")
    anchors: int = Field(100, ge=1, description="pixels tried per cluster")
    seed: int = Field(0, ge=0, description="of the draw of anchors")


Clustering = Annotated[MeanShift | Hdbscan | Consistency, Field(discriminator="method")]


class Recipe(_Settings):
    """How an embedding becomes instances: all numbers that decide, kept in every package."""

    clustering: Clustering = MeanShift()
    foreground: Foreground = Everywhere()
    min_size: int = Field(10, ge=0, description="smaller instances are dropped, in pixels")
    fill_reach: int = Field(5, ge=0, description="how far undecided pixels may take a neighbour")
    window: tuple[Annotated[int, Field(ge=8)], ...] | None = Field(
        None, description="side of a window in which clusters are sought, in pixels per axis"
    )

    def windows(self, n_axes: int) -> tuple[int, ...]:
        """Side of a window per axis, with the default written out.

        Raises:
            SettingError: The recipe is for images of another number of axes.
        """
        window = self.window or (_WINDOW[n_axes],) * n_axes
        if len(window) != n_axes:
            raise SettingError(
                f"recipe.window is {list(window)}: expected {n_axes} numbers, one per axis"
            )
        return window

    def margins(self, n_axes: int) -> tuple[int, ...]:
        """What a window sees around itself, in pixels per axis."""
        return tuple(-(-size // 4) for size in self.windows(n_axes))
