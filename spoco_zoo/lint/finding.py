"""One thing that is wrong with a package, for one program."""

from dataclasses import dataclass
from typing import Literal

Consumer = Literal["JDLL", "ilastik", "QuPath", "bioimageio.core", "format"]

CONSUMERS: tuple[Consumer, ...] = ("JDLL", "ilastik", "QuPath", "bioimageio.core")


@dataclass(frozen=True)
class Finding:
    """What is wrong, with the value, and the cure, in one sentence.

    An error stops the program or spoils its result; a warning is a result that may surprise.
    `format` stands for what no program can make sense of.
    """

    consumer: Consumer
    severity: Literal["error", "warning"]
    message: str
