"""What of spoco-zoo works on this machine, what does not, and the command that mends it.

Facts are gathered first; what they mean is said by functions of the facts alone, in sentences
for people who never read Python.
"""

from pathlib import Path

from spoco_zoo.doctor.facts import gather
from spoco_zoo.doctor.telling import Checkup, describe
from spoco_zoo.doctor.troubles import find_troubles

__all__ = ["Checkup", "describe", "examine"]


def examine(package: Path | None = None, device: str = "auto") -> Checkup:
    """Find out what works here.

    Args:
        package: Also open this package and run its network once.
        device: What is asked for: `cpu`, `cuda`, or `auto`, which takes what there is.

    Raises:
        OutputError: No folder for temporary files can be written.
    """
    facts = gather(package, device)
    return Checkup(facts, tuple(find_troubles(facts)))
