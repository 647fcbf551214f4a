"""Jobs on SLURM: what is asked for, how they stand, whatever is swept; with stand-ins for SLURM's commands."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tiny import RARELY, TINY, run_command, some

from cl_runner import interrupt
from cl_runner.sweeps import one_job, slurm
from cl_runner.sweeps.folder import Sweep, load
from cl_runner.sweeps.states import states_of

pytestmark = pytest.mark.usefixtures("no_pictures")
SHORT = [o for o in TINY if "threads" not in o and not o.startswith("method")] + ["training.max_steps=2"]
#: Every option of a job, with a value of its own.
ASKED = {
    "partition": "night",
    "account": "lab",
    "qos": "low",
    "constraint": "a100",
    "gres": "gpu:a100:2",
    "nodelist": '"n[1-3]"',
    "exclude": "n2",
    "dependency": "afterok:7",
    "minutes": "7",
    "gpus": "1",
    "cpus": "3",
    "memory_gb": "5",
    "at_once": "2",
    "signal_seconds": "33",
    "requeues": "4",
    "setup": "[module load cuda]",
    "environment": "{HF_HOME: /scratch/hub}",
}
#: sbatch keeps what it is given and counts; squeue shows a file; scontrol and scancel write down what they are told.
STANDS_IN = {
    "sbatch": 'n=$(ls "$D"/script_* 2>/dev/null | wc -l); cat > "$D/script_$n"; echo $((70 + n))',
    "squeue": 'cat "$D/queue" 2>/dev/null || true',
    "sacct": "exit 1",
    "scontrol": 'case "$*" in *show*) echo "MaxArraySize = 3" ;; *) echo "$@" >> "$D/told" ;; esac',
    "scancel": 'echo cancel "$@" >> "$D/told"',
}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where stand-ins for SLURM's commands leave what they were told."""
    place = tmp_path / "cluster"
    place.mkdir()
    for name, text in STANDS_IN.items():
        file = place / name
        file.write_text(f"#!/bin/bash\nD={place}\n{text}\n")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return place


def submitted(*overrides: str) -> list[str]:
    return ["submit", "hardware=slurm", *SHORT, "root=X", *overrides]


def plus(key: str) -> str:
    """Names that a mapping has not yet are added to it."""
    return "++" if key == "environment" else ""


def the_sweep() -> Sweep:
    (path,) = Path("X/sweeps").iterdir()
    return load(path)


@pytest.mark.parametrize(
    "swept", [["seed=0,1"], ["method=pe,ewc"], ["method=pe,ewc", "backbone=tiny_bert,minilm"], ["probe=none,task_loss"]]
)
def test_all_that_is_asked_reaches_the_job_whatever_is_swept(swept: list[str], cluster: Path) -> None:
    keys = {word.partition("=")[0] for word in swept}
    given = [o for o in submitted(*swept) if o.partition("=")[0] not in keys or o in swept]
    options = [f"{plus(key)}hardware.slurm.{key}={value}" for key, value in ASKED.items()]
    assert run_command([*given, *options]) == 0
    scripts = sorted(cluster.glob("script_*"))
    text = "".join(script.read_text() for script in scripts)
    for option in (
        *("partition=night", "account=lab", "qos=low", "constraint=a100", "gres=gpu:a100:2", "nodelist=n[1-3]"),
        *("exclude=n2", "dependency=afterok:7", "time=7", "cpus-per-task=3", "mem=5G", "gpus-per-node=1"),
        *("signal=B:USR1@33", "requeue", "open-mode=append"),
    ):
        assert text.count(f"#SBATCH --{option}\n") == len(scripts), option
    assert "%2\n" in text and "\nmodule load cuda\n" in text and "\nexport HF_HOME=/scratch/hub\n" in text
    sweep = the_sweep()
    assert {job.slurm.requeues for job in sweep.jobs if job.slurm} == {4}
    assert sum(len(given.jobs) for given in sweep.submissions) == len(sweep.jobs) == 2 ** len(swept)
    threads = [json.loads(json.dumps(job.overrides)) for job in sweep.jobs]
    assert all("hardware=slurm" in overrides for overrides in threads)


def test_a_run_of_several_processes_is_one_job(cluster: Path) -> None:
    """srun starts them, and SLURM tells each of them that its time is over."""
    several = ["hardware.slurm.processes=4", "hardware.slurm.nodes=2", "hardware.slurm.gpus=2"]
    assert run_command(submitted("seed=0,1", *several)) == 0
    (script,) = cluster.glob("script_*")
    text = script.read_text()
    for option in ("nodes=2", "ntasks=4", "gpus-per-node=2", "signal=USR1@120"):
        assert f"#SBATCH --{option}\n" in text, option
    (start,) = [row for row in text.splitlines() if " -m cl_runner job " in row]
    assert start.startswith("srun --ntasks=4 --cpus-per-task=2 ")


def test_of_several_processes_of_a_job_the_first_one_notes_how_it_went(
    cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_command(submitted("seed=0,1")) == 0
    sweep = the_sweep()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    monkeypatch.setattr("cl_runner.sweeps.one_job.run_request", lambda request: 75)
    assert one_job.run_job(sweep, 0) == 75 and not sweep.attempts(0)
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert one_job.run_job(sweep, 0) == 75 and len(sweep.attempts(0)) == 1


def test_more_jobs_than_an_array_holds_are_several(cluster: Path) -> None:
    assert run_command(submitted("seed=range(0,7)")) == 0
    arrays = [re.search(r"--array=(\S+)", path.read_text())[1] for path in sorted(cluster.glob("script_*"))]  # type: ignore[index]
    assert arrays == ["0-2", "0-2", "0-0"]
    assert [given.jobs for given in the_sweep().submissions] == [(0, 1, 2), (3, 4, 5), (6,)]


def test_jobs_that_ask_for_other_things_are_other_arrays(cluster: Path) -> None:
    assert run_command(submitted("seed=0,1", "hardware.slurm.memory_gb=2,4")) == 2, "one run cannot ask for both"
    assert not list(cluster.glob("script_*"))


def test_the_same_runs_are_the_same_sweep_and_none_is_submitted_twice(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(submitted("seed=0,1", "hardware.slurm.minutes=5")) == 0
    (cluster / "queue").write_text("70|0|RUNNING|None\n70|1|PENDING|Resources\n9|0|RUNNING|None\n")
    assert run_command(submitted("seed=1,0", "hardware.slurm.minutes=60")) == 0
    assert len(list(cluster.glob("script_*"))) == 1
    assert "2 jobs, 1 waiting, 1 running" in capsys.readouterr().out


def test_how_jobs_ended_by_slurms_two_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accounting where there is some, else what the controller still knows, array by array."""
    lines = {
        "sacct": "70_0|COMPLETED\n70_1|CANCELLED by 1000\n71|TIMEOUT\n",
        "scontrol": "JobId=73 ArrayJobId=70 ArrayTaskId=1 JobName=a JobState=OUT_OF_MEMORY Reason=None\n"
        "JobId=72 ArrayJobId=70 ArrayTaskId=2-3 JobName=a JobState=PENDING\n",
    }
    asked: list[str] = []

    def call(*words: str) -> str:
        asked.append(words[0])
        if words[0] not in lines:
            raise ValueError(f"{words[0]} refused")
        return lines[words[0]]

    monkeypatch.setattr(slurm, "call", call)
    assert slurm.ended(["70", "71"]) == {"70_0": "COMPLETED", "70_1": "CANCELLED", "71": "TIMEOUT"}
    assert asked == ["sacct"] and slurm.ended([]) == {}
    del lines["sacct"]
    assert slurm.ended(["70"])["70_1"] == "OUT_OF_MEMORY"
    del lines["scontrol"]
    assert slurm.ended(["70", "71"]) == {}


def test_how_jobs_stand(cluster: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_command(submitted("seed=range(0,3)")) == 0
    sweep = the_sweep()
    first = sweep.run_folder(0)
    first.mkdir(parents=True)
    (first / "COMPLETED").touch()
    (cluster / "queue").write_text("70|1|PENDING|Priority\n70|2|RUNNING|None\n")
    assert [(s.state, s.why) for s in states_of(sweep)] == [("done", ""), ("waiting", "Priority"), ("running", "")]
    (cluster / "queue").unlink()
    assert [(s.state, s.why) for s in states_of(sweep)][1:] == [("missing", "it never began")] * 2
    asked: list[Sequence[str]] = []
    monkeypatch.setattr(slurm, "ended", lambda jobs: asked.append(jobs) or {"70_1": "FAILED", "70_2": "CANCELLED"})
    assert [(s.state, s.why) for s in states_of(sweep)][1:] == [
        ("failed", "it ended before it began: FAILED"),
        ("missing", "it never began: CANCELLED"),
    ]
    assert asked == [["70"]], "once for all jobs"
    monkeypatch.setattr(slurm, "ended", lambda jobs: {})
    (sweep.path / "logs" / "70_1.log").write_text("one\n\nRuntimeError: [red] is no colour\n")
    sweep.begin(1, "70_1", str(sweep.path / "logs" / "70_1.log"))
    assert states_of(sweep)[1].state == "failed" and "was killed" in states_of(sweep)[1].why
    sweep.end(1, 1)
    sweep.begin(2, "70_2", "nowhere.log")
    sweep.end(2, 75)
    assert [s.state for s in states_of(sweep)] == ["done", "failed", "missing"]
    assert "RuntimeError: [red] is no colour" in states_of(sweep)[1].why
    capsys.readouterr()
    assert run_command(["status", "X"]) == 0
    said = capsys.readouterr().out
    assert "1 done, 1 failed, 1 missing" in said and "[red] is no colour" in said and "cl_runner resubmit" in said
    assert run_command(["resubmit", "X", "--jobs", "1"]) == 0
    assert the_sweep().submissions[-1].jobs == (1,)
    (cluster / "queue").write_text("71|0|PENDING|Priority\n")
    assert [s.state for s in states_of(the_sweep())] == ["done", "waiting", "missing"]
    assert run_command(["resubmit", "X"]) == 0
    assert the_sweep().submissions[-1].jobs == (2,)


def test_cancel_takes_what_waits_or_runs_out_of_the_queue(cluster: Path) -> None:
    assert run_command(submitted("seed=range(0,3)")) == 0
    (cluster / "queue").write_text("70|1|PENDING|Priority\n70|2|RUNNING|None\n")
    assert run_command(["cancel", "X", "--jobs", "0,2"]) == 0
    assert run_command(["cancel", "X"]) == 0
    assert (cluster / "told").read_text() == "cancel 70_2\ncancel 70_1 70_2\n"


def test_what_cannot_be_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm, "has", lambda command="sbatch": False)
    assert run_command(submitted("seed=0")) == 2
    assert "this machine has no sbatch" in capsys.readouterr().err
    assert run_command(["hardware=slurm", "seed=3"]) == 2
    assert (
        "a run on SLURM is submitted. Type: python -m cl_runner submit hardware=slurm seed=3" in capsys.readouterr().err
    )
    assert run_command(["-m", "hardware=slurm", "hydra/launcher=basic", "seed=3,4"]) == 2
    assert "one of them. Type: python -m cl_runner -m hardware=slurm seed=3,4" in capsys.readouterr().err
    assert run_command(["status", "nowhere"]) == 2
    assert "no submitted sweep lies in nowhere" in capsys.readouterr().err


@pytest.fixture
def job(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sweep]:
    """A job that SLURM has started in this process."""
    assert run_command(submitted("seed=0", "hardware.slurm.requeues=1")) == 0
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    yield the_sweep()
    interrupt.last_heard = None


@pytest.mark.parametrize("number", some([signal.SIGUSR2, signal.SIGUSR1], 2))
def test_a_job_near_its_limit_saves_and_waits_again(
    number: int, job: Sweep, cluster: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It goes on bit for bit; what is requeued once may not be requeued a second time here."""
    import cl_runner.passes

    step, steps = cl_runner.passes._pass, []

    def near_the_end(*given: object, **named: object) -> object:
        steps.append(None)
        if len(steps) == 2:
            os.kill(os.getpid(), number)
        return step(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(cl_runner.passes, "_pass", near_the_end)
    assert run_command(["job", str(job.path), "0"]) == 75
    assert (cluster / "told").read_text() == "requeue 70_0\n"
    assert "Back into the queue as job 70_0" in capsys.readouterr().out
    (attempt,) = job.attempts(0)
    assert attempt.requeued and attempt.saved is not None and attempt.status == 75
    assert run_command(["job", str(job.path), "0"]) == 0
    assert states_of(job)[0].state == "done"
    plain = [o for o in job.jobs[0].overrides if not o.startswith(("root", "hardware"))]
    assert run_command([*plain, "root=Y", "hardware=auto", "hardware.threads=2"]) == 0
    ends = [json.loads(path.read_text())["weights_sha256"] for path in Path().glob("[XY]/**/summary.json")]
    assert len(ends) == 2 and len(set(ends)) == 1


def test_who_cancels_is_believed_and_a_job_that_gets_no_further_stops(job: Sweep, cluster: Path) -> None:
    interrupt.last_heard = signal.SIGTERM
    job.begin(0, "70_0", "x")
    assert not one_job._waits_again(job, 0, "a")
    interrupt.last_heard = signal.SIGUSR1
    assert one_job._waits_again(job, 0, "a")
    job.end(0, 75, requeued=True, saved="a")
    job.begin(0, "70_0", "x")
    assert one_job._waits_again(job, 0, "b") and not one_job._waits_again(job, 0, "a")


@RARELY
def test_code_and_configuration_are_those_of_the_submission(cluster: Path, tmp_path: Path) -> None:
    (tmp_path / "mine/method").mkdir(parents=True)
    (tmp_path / "own_part.py").write_text(
        "from dataclasses import dataclass\nfrom cl_runner.methods.base import Method\n\n\n"
        "@dataclass\nclass Own(Method):\n    pass\n"
    )
    (tmp_path / "mine/method/own.yaml").write_text("own: {_target_: own_part.Own}\n")
    assert run_command([*submitted("seed=0,1", "method=own"), "--config-dir", "mine"]) == 0
    sweep = the_sweep()
    shutil.rmtree(tmp_path / "mine")
    (tmp_path / "own_part.py").write_text("raise RuntimeError('edited')\n")
    code = sweep.path.resolve() / sweep.code
    assert {path.name for path in code.iterdir()} >= {
        "cl_runner",
        "conf",
        "configuration_0",
        "own_part.py",
        "frozen.json",
    }
    (script,) = cluster.glob("script_*")
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "1", "PYTHONPATH": ""}
    done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (sweep.run_folder(1) / "COMPLETED").is_file()
    assert json.loads((sweep.run_folder(1) / "environment.json").read_text())["git"] is not None
