"""Which augmentation library is faster for one training crop: batchgeneratorsv2 or MONAI.

Both turn, scale and crop one image with its labels and then change noise, blur, brightness,
contrast and gamma of two views, every change applied. One thread, sides alternating in one
process; the median of the ratios is printed. MONAI is installed for this alone:
pip install --no-deps monai

    python benchmarks/augmentation.py
"""

import statistics
import time

import numpy as np
import torch

CROP = {2: (128, 128), 3: (16, 96, 96)}


def library_side(crop):
    from spoco_zoo.spec import AugmentationSettings
    from spoco_zoo.training import samples

    # the product's own geometry and intensity, with every chance set to one
    settings = AugmentationSettings(elastic_ratio=0.0, intensity_ratio=1.0)
    geometry = samples._geometry(settings, crop)
    spatial = geometry.transforms[0]
    spatial.p_rotation = spatial.p_scaling = 1.0
    intensity = samples._intensity(settings)

    def run(image, labels):
        moved = geometry(image=torch.from_numpy(image), segmentation=torch.from_numpy(labels))
        for _ in range(2):
            intensity(image=moved["image"].clone())

    return run


def monai_side(crop):
    from monai import transforms as m

    turn = (0.0, 0.0, np.pi) if len(crop) == 3 else np.pi
    geometry = m.Compose(
        [
            m.RandAffined(
                ["image", "labels"],
                prob=1.0,
                rotate_range=turn,
                scale_range=(-0.3, 0.4),
                spatial_size=crop,
                mode=("bilinear", "nearest"),
                padding_mode="reflection",
            ),
            *(m.RandFlipd(["image", "labels"], prob=0.5, spatial_axis=a) for a in range(len(crop))),
        ]
    )
    intensity = m.Compose(
        [
            m.RandGaussianNoise(prob=1.0, std=0.3),
            m.RandGaussianSmooth((0.5, 1.5), (0.5, 1.5), (0.5, 1.5), prob=1.0),
            m.RandScaleIntensity((-0.3, 0.4), prob=1.0),
            m.RandAdjustContrast(prob=1.0, gamma=(0.7, 1.5)),
            m.RandAdjustContrast(prob=1.0, gamma=(0.7, 1.5), retain_stats=True),
        ]
    )

    def run(image, labels):
        moved = geometry({"image": image, "labels": labels})
        for _ in range(2):
            intensity(moved["image"].clone())

    return run


def time_of(run, image, labels, repeats=10):
    start = time.perf_counter()
    for _ in range(repeats):
        run(image, labels)
    return time.perf_counter() - start


def main():
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    for n_axes, crop in CROP.items():
        window = tuple(2 * size for size in crop)
        image = random.normal(size=(1, *window)).astype(np.float32)
        labels = random.integers(0, 30, (1, *window)).astype(np.int64)
        ours, theirs = library_side(crop), monai_side(crop)
        time_of(ours, image, labels, 2), time_of(theirs, image, labels, 2)
        ratios = [time_of(theirs, image, labels) / time_of(ours, image, labels) for _ in range(9)]
        low, high = min(ratios), max(ratios)
        print(
            f"{n_axes}D crop {crop}: MONAI takes {statistics.median(ratios):.1f} times as long "
            f"as batchgeneratorsv2 ({low:.1f} to {high:.1f})"
        )


if __name__ == "__main__":
    main()
