"""The torch wing: from a spec and a folder of images to a run folder."""

from spoco_zoo.training.loop import train
from spoco_zoo.training.options import StepReport, TrainOptions, TrainResult
from spoco_zoo.training.starting import read_start

__all__ = ["StepReport", "TrainOptions", "TrainResult", "read_start", "train"]
