"""What the network sees: the first crops of a run, as both views and their labels."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from spoco_zoo.figures import contact_sheet, label_picture, outline, side_by_side
from spoco_zoo.spec import Spec
from spoco_zoo.training.samples import AnySample, SparseSamples

_CROPS = 8
_SIDE = 224  # pixels of a picture


def show_crops(samples: Sequence[AnySample], spec: Spec) -> UInt8[np.ndarray, "y x 3"]:
    """Draw the first crops of a run: view f with outlines, view g, and the labels of both.

    Where pixels are unlabelled, view f is dark and the labels are grey. Of a volume the middle
    slice is shown.
    """
    data = SparseSamples(samples, spec)
    pictures = []
    for step in range(len(data)):
        batch = data[step]
        for number in range(len(batch.labels)):
            view_f, view_g = batch.view_f[number].numpy(), batch.view_g[number].numpy()
            labels = batch.labels[number].numpy()
            panels = [
                outline(view_f, labels, _SIDE),
                outline(view_g, np.zeros_like(labels), _SIDE),
                _enlarge(label_picture(labels)),
            ]
            count = len(np.unique(labels[labels > 0]))
            text = f"step {step}, crop {number}: view f, view g, {count} instances"
            pictures.append((text, side_by_side(panels, gap=4)))
        if len(pictures) >= _CROPS:
            break
    return contact_sheet(pictures[:_CROPS], columns=2)


def _enlarge(picture: UInt8[np.ndarray, "y x 3"]) -> UInt8[np.ndarray, "y x 3"]:
    """Bring a picture of labels to the size that `outline` gives, without mixing colours."""
    height, width = picture.shape[:2]
    factor = _SIDE / max(height, width)
    rows = (np.arange(max(round(height * factor), 1)) / factor).astype(int).clip(0, height - 1)
    columns = (np.arange(max(round(width * factor), 1)) / factor).astype(int).clip(0, width - 1)
    return picture[rows][:, columns]
