"""One of the processes of test_distributed: trains, stops, resumes and is refused."""

import json
import sys
from pathlib import Path

import torch

from spoco_zoo.errors import SpocoZooError
from spoco_zoo.spec import load_spec
from spoco_zoo.training import TrainOptions, train

torch.set_num_threads(1)  # on tiny images threads wait for each other


def attempt(spec, data, folder, **options):
    """Train, and say how it ended."""
    steps, stages = [], []
    options = {"on_step": steps.append, "on_stage": stages.append, **options}
    try:
        result = train(load_spec(spec), Path(data), folder, TrainOptions(device="cpu", **options))
    except SpocoZooError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    except SystemExit as end:
        return {"exit": end.code}
    fitted = None if result.fitted is None else result.fitted.scores
    return {
        "step": result.step,
        "finished": result.finished,
        "fitted": fitted,
        "reports": [report.step for report in steps],
        "stages": stages,
    }


def main():
    scenes = json.loads(Path(sys.argv[1]).read_text())
    rank, out = int(sys.argv[2]), Path(sys.argv[3])
    outcomes = {}
    torch.distributed.init_process_group("gloo")
    for scene in scenes:
        # of every process its own folder, so that one sees who writes
        folder = out / f"rank{rank}" / scene["run"]
        options = {key: scene[key] for key in ("resume",) if key in scene}
        if "stop_at" in scene:  # asked of the first process alone
            seen = []
            limit = scene["stop_at"]
            options["on_step"] = seen.append
            options["should_stop"] = lambda seen=seen, limit=limit: len(seen) >= limit
        data = scene["data"][rank % len(scene["data"])]
        outcomes[scene["name"]] = attempt(scene["spec"], data, folder, **options)
    torch.distributed.destroy_process_group()
    (out / f"outcomes{rank}.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main()
