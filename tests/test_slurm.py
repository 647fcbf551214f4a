"""The hardware group for clusters: what a job asks for, and a real job where there is a SLURM."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tiny import TINY

from cl_runner.compose import _compose, _hydra

ASKED = ["hardware=slurm", "hardware.slurm.partition=night", "hardware.slurm.minutes=7", "hardware.slurm.gpus=1"]


def test_the_group_reaches_the_launcher() -> None:
    with _hydra([]):
        composed = _compose(ASKED, [])
    launcher = composed.hydra.launcher
    assert composed.hydra.runtime.choices["hydra/launcher"] == "submitit_slurm"
    assert (launcher.partition, launcher.timeout_min, launcher.gpus_per_node) == ("night", 7, 1)
    assert (launcher.cpus_per_task, launcher.mem_gb) == (2, 8)
    assert OmegaConf.select(composed, "hardware.threads") == 2, "as many threads as cores were asked for"


@pytest.mark.slow
def test_jobs_in_processes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are pickled as for a cluster, the user's files and what task definitions leave out included."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    for split in ("train", "test"):
        (tmp_path / f"news-{split}.csv").write_text("text,label\n" + "a good text,1\na bad text,0\n" * 4)
    (tmp_path / "mine/task_order").mkdir(parents=True)
    (tmp_path / "mine/task_order/own.yaml").write_text(
        "# @package _global_\n# mine\n"
        "task: {own: {path: '{domain}-{split}.csv', labels: {'0': a, '1': b}}}\n"
        "task_order: {task: own, tasks: [{name: news}]}\n"
    )
    monkeypatch.chdir(tmp_path)
    arguments = ["-m", "--config-dir", "mine", "hydra/launcher=submitit_local", "task_order=own", "method=seq_ft"]
    arguments += [o for o in TINY if not o.startswith("task_order")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "cl_runner", *arguments, "training.max_steps=2", "task.own.max_rows=7"]
    subprocess.run(command, check=True, env=environment)
    assert len(list(tmp_path.rglob("COMPLETED"))) == 1


@pytest.mark.skipif(shutil.which("sinfo") is None, reason="no SLURM on this machine")
def test_a_sweep_on_slurm(tmp_path: Path) -> None:
    up = subprocess.run(["sinfo", "-h", "-o", "%P"], capture_output=True, text=True)
    if up.returncode != 0 or not up.stdout.strip():
        pytest.skip("SLURM is installed but not running")
    arguments = ["-m", "hydra/launcher=submitit_slurm", "hardware=slurm", "hardware.slurm.cpus=1"]
    arguments += ["hardware.slurm.memory_gb=2", "hardware.slurm.minutes=10", "seed=0,1", "training.max_steps=2"]
    arguments += [o for o in TINY if "threads" not in o]
    subprocess.run([sys.executable, "-m", "cl_runner", *arguments, f"root={tmp_path}"], check=True)
    assert len(list(tmp_path.rglob("COMPLETED"))) == 2
