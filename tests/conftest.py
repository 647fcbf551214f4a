"""What every test shares: one CPU thread, no network."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is imported, here or in a subprocess: tests must not fight over cores or reach for a hub.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

# Helpers that compare show what differs, as tests do.
pytest.register_assert_rewrite("four_tasks", "gradients", "own", "stored")


#: Tests of what pictures show; elsewhere figures are made, but not rendered.
DRAWN = ("test_report", "test_atlas", "test_run", "test_wandb")
#: A picture of one pixel.
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=")


@pytest.fixture(scope="session")
def prices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What passes of the tiny models cost, for all runs of this process."""
    return tmp_path_factory.mktemp("prices")


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, prices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rendering and pricing are two thirds of a tiny run's time."""
    monkeypatch.setattr("cl_runner.planning.plan.price_store", lambda config: prices)
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
