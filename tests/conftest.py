"""What every test shares: one CPU thread, no network."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

# Before torch is imported, here or in a subprocess: tests must not fight over cores or reach for a hub.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

# Helpers that compare show what differs, as tests do.
pytest.register_assert_rewrite("four_tasks", "gradients", "own", "stored")


#: Tests of what pictures show; elsewhere figures are made, but not rendered.
DRAWN = ("test_report", "test_atlas", "test_run", "test_wandb")
#: Tests that ask nothing of a run's plan, which takes half of a tiny run.
UNPLANNED = {
    *("test_adapters", "test_beginnings", "test_captioning", "test_certificate", "test_chats", "test_checkpoints"),
    *("test_compare", "test_conf", "test_drawings", "test_families", "test_figures", "test_first_task", "test_fork"),
    *("test_forgotten", "test_gguf", "test_humaneval", "test_masked_kl", "test_optimizer", "test_own_files"),
    *("test_piece", "test_probes", "test_prompts", "test_replay", "test_representations", "test_resume"),
    *("test_resume_memory", "test_sdft", "test_slm", "test_special_tokens", "test_trackers", "test_training"),
    *("test_versions", "test_vqa", "test_zero_gradient"),
}
#: A picture of one pixel.
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=")


@pytest.fixture(scope="session")
def prices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What passes of the tiny models cost, for all runs of this process."""
    return tmp_path_factory.mktemp("prices")


def unplanned(*asked: object) -> NoReturn:
    """In the place of a plan."""
    raise ValueError("this test asks for none")


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, prices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rendering and planning are two thirds of a tiny run's time."""
    monkeypatch.setattr("cl_runner.planning.plan.price_store", lambda config: prices)
    if request.path.stem in UNPLANNED:
        monkeypatch.setattr("cl_runner.planning.begun.plan_run", unplanned)
    if not request.path.stem.startswith(DRAWN):
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **_: path.write_bytes(PNG))


@pytest.fixture
def no_pictures() -> Iterator[None]:
    """Runs without reports, for one test."""
    from tiny import without_report  # which imports torch

    with without_report():
        yield


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
