"""What keeps a bioimage.io package from working in the programs it is for, found by reading it.

Nothing of the package is run, and neither torch nor onnx is needed. The rules are what the
programs were seen to do: JDLL 0.6 (Fiji's deepImageJ 3), ilastik 1.4.2, QuPath's InstanSeg
extension 0.1.6, and bioimageio.core 0.9 to 0.11.
"""

from spoco_zoo.lint.finding import CONSUMERS, Finding
from spoco_zoo.lint.linter import choose_consumers, lint_package
from spoco_zoo.lint.report import Report

__all__ = ["CONSUMERS", "Finding", "Report", "choose_consumers", "lint_package"]
