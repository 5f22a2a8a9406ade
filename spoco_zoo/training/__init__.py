"""The torch wing: from a spec and a folder of images to a run folder."""

from spoco_zoo.training.loop import StepReport, TrainOptions, TrainResult, train

__all__ = ["StepReport", "TrainOptions", "TrainResult", "train"]
