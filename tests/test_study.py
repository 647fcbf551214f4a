"""The studies: their rows are methods that exist, and of several tries the best one is chosen."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from cl_runner.compose import compose
from cl_runner.overrides import jobs_of
from tests.run_folders import make_run

TOP = Path(__file__).parents[1]


def load_script(name: str) -> ModuleType:
    sys.path.insert(0, str(TOP / "scripts"))  # where what they share lies
    spec = importlib.util.spec_from_file_location(name, TOP / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


script = load_script("baselines_study")
studies = load_script("studies")


def options_of(method: str) -> set[str]:
    """The keys of a preset's YAML and of those that it starts from."""
    content = yaml.safe_load((TOP / "conf" / "method" / f"{method}.yaml").read_text(encoding="utf-8"))
    found = {f"method.{node}.{key}" for node, values in content.items() if node != "defaults" for key in values}
    return found.union(*(options_of(parent) for parent in content.get("defaults", []) if parent != "_self_"))


@pytest.mark.parametrize("name", script.STUDIES)
def test_rows_name_methods_and_options_that_exist(name: str) -> None:
    for row in script.STUDIES[name].rows.values():
        options = set().union(*(options_of(method) for method in row.method.strip("[]").split(",")))
        keys = [row.key, *(given.partition("=")[0] for given in row.given)]
        assert {key for key in keys if key.startswith("method.")} <= options, row


@pytest.mark.parametrize(
    ("study", "name"),
    [
        ("cl_text", "opr+piece_s"),
        ("cl_text", "joint"),
        ("trace_english", "icl"),
        ("slm_bert", "mbpa"),
        ("slm_bert", "prog_prompt"),
        ("slm_t5", "slm"),
    ],
)
def test_lines_compose(study: str, name: str) -> None:
    asked, row = script.STUDIES[study], script.STUDIES[study].rows[name]
    added = ["backbone.checkpoint=FOLDER"] if study in ("trace_english", "slm_t5") else []
    for line in (script.tries_line(asked, row, added), script.runs_line(asked, row, row.tries[0], "1", added)):
        assert line[0] == "-m"
        request = compose(jobs_of(line[1:], [])[0], [])
        assert not request.unread


def test_the_better_try_is_chosen_once_both_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    row = script.Row("pe", "method.pe.fraction", (0.005, 0.01))
    study = script.Study("small", ("fdu_mtl",), {"pe": row}, script.mean_accuracy)
    root = Path("outputs/baselines_small_tries")
    assert script.Study("small", (), {}, script.mean_accuracy, name="part").tried == root
    assert script.chosen(study, row) is None
    make_run(root, "pe", fraction=0.005, last=60.0)
    assert script.chosen(study, row) is None
    make_run(root, "pe", fraction=0.01, last=70.0)
    assert script.chosen(study, row) == (0.01, {0.005: 60.0, 0.01: 70.0})


@pytest.mark.parametrize("name", ["drawn_llava", "drawn_qwen3_vl"])
def test_a_study_of_pictures_runs_each_method_as_often(name: str) -> None:
    added = ["data_root=DATA"]
    base = compose(studies.base_line(name, 1, added), [])
    assert base.config.backbone.frozen == [] and not base.unread
    for row in studies.STUDIES[name].rows:
        jobs = [compose(job, []) for job in jobs_of(studies.row_line(name, row, 1, added)[1:], [])]
        assert len({job.hash for job in jobs}) == len(jobs) == 2
        for job in jobs:
            assert job.config.backbone.checkpoint == f"./outputs/{name}_base/seed1" and not job.unread
