"""Run an ONNX file in the ONNX Runtime of this Python: MODEL INPUT.npy PREFIX [INPUT PREFIX ...].

Writes PREFIX0.npy, PREFIX1.npy ... and prints one line of JSON for each input; without arguments,
only the version.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime


def peak_bytes() -> int | None:
    """The most memory that this process held; None where the system does not tell."""
    # not of getrusage, which under Linux begins with what the parent held when it started this
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    words = next((line.split() for line in lines if line.startswith("VmHWM:")), None)
    return None if words is None else 1024 * int(words[1])


def main(words: list[str]) -> int:
    """Run the model; the exit code is 1 where the engine refuses."""
    told: dict[str, object] = {"engine": onnxruntime.__version__}
    if not words:
        tell(told)
        return 0
    try:
        told["stage"] = "open"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        said, *_ = os.environ.get("OMP_NUM_THREADS", "").split(",")
        options.intra_op_num_threads = int(said) if said.isdecimal() else 0  # all cores
        session = onnxruntime.InferenceSession(
            words[0], options, providers=["CPUExecutionProvider"]
        )
        told["stage"] = "run"
        name = session.get_inputs()[0].name
        for image, prefix in zip(words[1::2], words[2::2], strict=True):
            start = time.perf_counter()
            outputs = session.run(None, {name: np.load(image, allow_pickle=False)})
            told["seconds"] = time.perf_counter() - start
            for number, output in enumerate(outputs):
                np.save(f"{prefix}{number}.npy", output, allow_pickle=False)
            told["peak_bytes"] = peak_bytes()
            tell(told | {"outputs": [list(output.shape) for output in outputs]})
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        tell(told | {"error": str(error) or type(error).__name__})
        return 1
    return 0


def tell(words: dict[str, object]) -> None:
    """Print one line of JSON, on a line of its own whatever was printed before."""
    sys.stdout.write("\n" + json.dumps(words) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
