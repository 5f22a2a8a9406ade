"""Run a TorchScript file in the PyTorch of this Python: MODEL INPUT.npy PREFIX.

Writes PREFIX0.npy, PREFIX1.npy ... and prints one line of JSON; without arguments, only the
version.
"""

import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch


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
    told: dict[str, object] = {"engine": str(torch.__version__).partition("+")[0]}
    warnings.simplefilter("ignore")
    if words:
        model, image, prefix = words
        told["stage"] = "open"
        try:
            module = torch.jit.load(model, map_location="cpu")  # type: ignore[no-untyped-call]
            module.eval()
            told["stage"] = "run"
            start = time.perf_counter()
            with torch.no_grad():
                result = module(torch.from_numpy(np.load(image, allow_pickle=False)))
            told["seconds"] = time.perf_counter() - start
            outputs = [result] if isinstance(result, torch.Tensor) else list(result)
            for number, output in enumerate(outputs):
                np.save(f"{prefix}{number}.npy", output.numpy(), allow_pickle=False)
            told["peak_bytes"] = peak_bytes()
            told["outputs"] = [list(output.shape) for output in outputs]
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            told["error"] = str(error) or type(error).__name__
    sys.stdout.write("\n" + json.dumps(told) + "\n")
    return int("error" in told)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
