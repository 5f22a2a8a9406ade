"""What the network sees and makes of it, as pictures for TensorBoard.

    image       instances found    labels
    embedding   soft masks         foreground

A volume is shown by its middle slice. Unlabelled pixels are tinted violet in the labels. Pictures
draw no random numbers and leave no trace in the run.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Integer, UInt8

from spoco_zoo.figures import (
    embedding_colors,
    label_colors,
    middle_slice,
    overlay,
    resize,
    side_by_side,
)
from spoco_zoo.fitting import Embedded
from spoco_zoo.labels import UNLABELED
from spoco_zoo.spec import LossSettings
from spoco_zoo.training.samples import AnySample, Batch, Sample

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SHOWN = 2  # of the validation images; a crop of training comes after them

_SIDE = 256  # pixels of a panel, at most
_GAP = 8
_MASKS = 6  # soft masks in a panel
_TINT = np.array([120, 70, 170])  # of unlabelled pixels

# an image, its embedding, and the instances found (*space); images differ in shape
Seen = tuple[AnySample, Embedded, np.ndarray]


def sample_of(batch: Batch) -> Sample:
    """Take the first crop of a batch, as f sees it, for a sample."""
    image, labels = batch.view_f[0].float().cpu().numpy(), batch.labels[0].cpu().numpy()
    return Sample("training crop", image, labels, ())


def show_pictures(
    board: "SummaryWriter", step: int, seen: Sequence[Seen], loss: LossSettings
) -> None:
    """Add a picture of each sample to the board, under its name."""
    for one in seen:
        board.add_image(f"pictures/{one[0].name}", draw(one, loss), step, dataformats="HWC")


def draw(seen: Seen, loss: LossSettings) -> UInt8[np.ndarray, "y x 3"]:
    """Draw what the network sees and makes of it, two rows of three panels."""
    sample, embedded, found = seen
    axes = sample.labels.ndim
    image, embedding = (
        resize(middle_slice(part, axes), _SIDE) for part in (sample.image, embedded.embedding)
    )
    found, states = (resize(middle_slice(part, axes), _SIDE) for part in (found, sample.labels))
    labels = overlay(image, np.maximum(states, 0))
    unknown = states == UNLABELED
    labels[unknown] = (labels[unknown].astype(int) + _TINT) // 2
    lower = [embedding_colors(embedding), soft_masks(embedding, states, loss)]
    if embedded.probability is not None:
        probability = resize(middle_slice(embedded.probability, axes), _SIDE)
        lower.append(np.rint(255 * probability).astype(np.uint8))
    else:
        lower.append(np.full(states.shape, 255, np.uint8))
    rows = [side_by_side([overlay(image, 0 * found), overlay(image, found), labels], _GAP)]
    rows.append(side_by_side(lower, _GAP))
    return np.concatenate([rows[0], np.full_like(rows[0][:_GAP], 255), rows[1]])


def soft_masks(
    embedding: Float[np.ndarray, "e y x"], states: Integer[np.ndarray, "y x"], loss: LossSettings
) -> UInt8[np.ndarray, "y x 3"]:
    """Paint the soft masks of some instances, each in the colour of its label.

    A soft mask is the kernel of the loss around the mean embedding of an instance: 1 at the mean
    and `kernel_threshold` at the distance `delta_var`. Where several reach a pixel, the strongest
    is shown.
    """
    ids = np.unique(states[states > 0])
    chosen = ids[np.unique(np.linspace(0, len(ids) - 1, min(len(ids), _MASKS)).astype(int))]
    means = [embedding[:, states == i].mean(1)[:, None, None] for i in chosen]
    # eq. 4, Wolny et al. 2022
    masks = [np.exp(-((embedding - m) ** 2).sum(0) / loss.two_sigma_squared) for m in means]
    stack = np.stack([np.zeros(states.shape), *masks])
    strongest = stack.argmax(0)
    colors = label_colors(int(ids.max(initial=0)))[np.concatenate([[0], chosen]).astype(int)]
    return np.asarray(np.rint(stack.max(0)[..., None] * colors[strongest]), np.uint8)
