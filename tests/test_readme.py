"""The README is a promise: its commands are CI's, its Python runs, its links lead somewhere."""

import ast
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

import spoco_zoo

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_first_two_commands_are_those_of_ci():
    first, second = (block.strip() for block in code_blocks("bash")[:2])
    ci = [line.strip() for line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()]
    assert first in ci
    assert second in ci
    assert "constraints.txt" in first
    assert "constraints.txt" in second


def test_every_relative_link_leads_to_a_file():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    local = [link for link in links if not link.startswith("http")]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []


def test_the_python_example_does_what_it_says(monkeypatch):
    block = code_blocks("python")[0]
    monkeypatch.chdir(ROOT)
    scope = {}
    exec(compile(block, "README.md", "exec"), scope)
    assert scope["labels"].dtype == np.uint32
    assert scope["labels"].shape == scope["image"].shape


def test_the_example_for_large_data_calls_what_there_is():
    pytest.importorskip("distributed")
    block = code_blocks("python")[1]
    call = next(n for n in ast.walk(ast.parse(block)) if isinstance(n, ast.Call))
    assert ast.unparse(call.func) == "spoco_zoo.segment_volume"
    names = [word.arg for word in call.keywords]
    inspect.signature(spoco_zoo.segment_volume).bind(*call.args, **dict.fromkeys(names))


def test_recipes_for_clusters_can_be_read():
    for block in code_blocks("python"):
        compile(block, "README.md", "exec")
    (recipe,) = map(yaml.safe_load, code_blocks("yaml"))
    assert recipe["kind"] == "DaskCluster"
    assert recipe["spec"].keys() == {"worker", "scheduler"}


def test_every_flag_of_the_readme_is_a_flag_of_a_command():
    from typer.main import get_command

    from spoco_zoo.cli import app

    commands = get_command(app).commands
    known = {flag for c in commands.values() for p in c.params for flag in p.opts}
    used = set(re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]+)", README)) - {
        "--logdir",  # of TensorBoard
        "--nproc-per-node",  # of torchrun
        *("--host", "--memory-limit", "--nthreads", "--nworkers", "--port"),  # of Dask
        *("--create-namespace", "--generate-name", "--repo"),  # of helm
        "--gres",  # of SLURM
    }
    assert used <= known


def test_constraints_pin_the_versions_that_were_tested():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert pins["torch"] == "2.13.0"
    assert int(pins["pydantic"].split(".")[1]) < 14
    assert "onnxruntime-gpu" in pins
