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

    Unlabelled pixels are grey among the labels. Of a volume the middle slice is shown.
    """
    data = SparseSamples(samples, spec)
    pictures = []
    for step in range(len(data)):
        batch = data[step]
        for number in range(len(batch.labels)):
            view_f, view_g = batch.view_f[number].numpy(), batch.view_g[number].numpy()
            labels = batch.labels[number].numpy()
            panels = [
                outline(view_f, np.maximum(labels, 0), _SIDE),
                outline(view_g, np.zeros_like(labels), _SIDE),
                label_picture(labels, _SIDE),
            ]
            count = len(np.unique(labels[labels > 0]))
            text = f"step {step}, crop {number}: view f, view g, labels; instances: {count}"
            pictures.append((text, side_by_side(panels, gap=4)))
        if len(pictures) >= _CROPS:
            break
    return contact_sheet(pictures[:_CROPS], columns=2, gap=20)
