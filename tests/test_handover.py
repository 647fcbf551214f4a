"""Exported models: each kind answers as its run did, others' libraries load it, its card and the hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import ROWS, Row
from exported import small_run
from huggingface_hub import ModelCard
from tiny import EVERY_FAMILY

import cl_runner
from cl_runner import digests
from cl_runner.batch import Batch
from cl_runner.handover import vllm
from cl_runner.handover.card import licence_of, shown
from cl_runner.history.command import main
from cl_runner.learner import Learner

# peft 0.21 asks transformers 5.23 by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

#: A method on a family -> the form that it is exported in: one of each way to write and to load.
KINDS = {
    "piece_s-bert": "model",
    "lora-bert": "adapter",
    "seq_lora-llama": "adapter",
    "prog_prompt-llama": "prompt",
    "slm-bert": "method",
    "mbpa-bert": "method",
    "icl-t5": "method",
}
MORE = {
    "seq_lora-llava": "adapter",
    "prompt_tuning-t5": "prompt",
    "prog_prompt-bert": "method",
    "l2p-bert": "method",
}


class Made:
    """Runs and what is exported of them, each once."""

    def __init__(self, root: Path):
        self.root = root
        self._runs: dict[str, tuple[Path, Learner]] = {}

    def run(self, name: str) -> tuple[Path, Learner]:
        if name not in self._runs:
            choice, _, family = name.rpartition("-")
            row: Row = next(row for row in ROWS if row.choice == choice)
            self._runs[name] = small_run(row, family, self.root)
        return self._runs[name]

    def exported(self, name: str, *more: str, check: str = "all") -> tuple[Path, int]:
        """The folder, and the status that the command ended with."""
        output = self.root / f"{name} exported{' '.join(more).replace('/', '')}"
        if output.is_dir():
            return output, 0
        run, learner = self.run(name)
        after = learner.tasks[1].name
        return output, main(["export", str(run), "--after", after, "--output", str(output), "--check", check, *more])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("handover"))


@pytest.mark.parametrize("name", KINDS | MORE if EVERY_FAMILY else KINDS)
def test_a_folder_answers_as_its_run_did(name: str, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    folder, status = made.exported(name)
    said = capsys.readouterr()
    assert status == 0, said.err
    assert "It answers as the run did: the same answer to 12 of 12 test examples compared (of 12), on cpu" in said.out
    manifest = json.loads((folder / "cl_runner.json").read_text())
    assert manifest["kind"] == (KINDS | MORE)[name]
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".py")]
    assert len({path.stat().st_mode for path in folder.rglob("*") if path.is_file()}) == 1, "all may read all of it"
    text = (folder / "README.md").read_text()
    assert str(made.root) not in text
    card = ModelCard(text)
    assert card.data.library_name in ("transformers", "peft", "cl_runner") and card.data.license is None
    assert "continual-learning" in card.data.tags
    assert (
        "the same answer to 12 of 12" in text
        and "no licence of a base model" in text
        and "vLLM itself was not run" in text
    )


def test_what_is_loaded_answers_texts(made: Made) -> None:
    run, learner = made.run("slm-bert")
    model = cl_runner.load(made.exported("slm-bert")[0], device="cpu")
    kept = [json.loads(line) for line in (run / "predictions" / "02_kettles.jsonl").read_text().splitlines()]
    texts = [example.prompt for task in learner.tasks for example in task.test]
    assert model.answer(texts) == [line["prediction"] for line in kept]
    assert [p.confidence for p in model.predict(texts)] == pytest.approx(
        [line["confidence"] for line in kept], rel=1e-5
    )
    assert model.answer([]) == [] and model.tasks == ["base", "kettles"]
    with pytest.raises(ValueError, match=r"there is no task 'kettle'; the model knows base, kettles"):
        model.answer(["good"], task="kettle")
    with pytest.raises(ValueError, match=r"Type: model\.answer\(\[text\]\)"):
        model.answer("good")
    told = cl_runner.load(made.exported("lora-bert")[0], device="cpu")
    with pytest.raises(ValueError, match=r"it is told the task of each text\): task='base'"):
        told.answer(["good"])
    assert len(told.answer(["good", "bad"], task="kettles")) == 2


LOADER = """
import json, sys, torch
for name, code, inputs in json.loads(sys.stdin.read()):
    known = {}
    exec(code, known)
    model = known["model"].eval()
    given = {key: torch.tensor(values) for key, values in inputs.items()}
    with torch.no_grad():
        print(json.dumps([name, model(**given).logits.tolist(), len(known["reader"]("good")["input_ids"])]))
assert "cl_runner" not in sys.modules
"""


def test_others_load_it_by_the_lines_of_its_card(made: Made, tmp_path: Path) -> None:
    """In a process without cl_runner: the same logits as the run's model, by transformers and peft alone."""
    names = ("piece_s-bert", "lora-bert", "seq_lora-llama", "prog_prompt-llama")
    asked, wanted = [], {}
    for name in names:
        folder, learner = made.exported(name)[0], made.run(name)[1]
        code = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
        assert f'folder = "{folder.name}"' in code and "cl_runner" not in code
        example = learner.tasks[0].test[0]  # of the first task, whose folder the lines name; alone, without padding
        batch = learner.collate([example], answers=False)
        given = {key: batch[key] for key in ("input_ids", "attention_mask")}
        learner.model.eval()
        with torch.no_grad():
            whole = learner.method.before_forward(learner, Batch(dict(batch), batch.examples))
            read = {key: whole[key] for key in given}
            wanted[name] = learner.model(**read).logits
        asked.append((name, code, {key: values.tolist() for key, values in given.items()}))
    done = subprocess.run(
        [sys.executable, "-c", LOADER],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=made.root,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        name, logits, tokens = json.loads(line)
        assert tokens
        torch.testing.assert_close(torch.tensor(logits), wanted.pop(name), rtol=1e-4, atol=1e-5)
    assert not wanted


def test_merged_adapters_are_one_model(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    folder, status = made.exported("seq_lora-llama", "--merge")
    assert status == 0 and "the same answer to 12 of 12" in capsys.readouterr().out
    assert (folder / "model.safetensors").is_file() and not (folder / "adapter_config.json").exists()
    assert made.exported("lora-bert", "--merge")[1] == 2
    assert "--merge is for one low-rank adapter, or several that add up" in capsys.readouterr().err
    assert not (made.root / "lora-bert exported--merge").exists()


def test_differing_answers_are_told(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(made.run("piece_s-bert")[0], run, ignore=shutil.ignore_patterns("exported"))
    path = run / "predictions" / "02_kettles.jsonl"
    lines = path.read_text().splitlines()
    first = json.loads(lines[0])
    digests.write(path, "\n".join([json.dumps(first | {"prediction": "6 stars"}), *lines[1:], ""]))
    command = ["export", str(run), "--after", "kettles", "--output"]
    assert main([*command, str(tmp_path / "a")]) == 1
    said = capsys.readouterr().out
    assert "does not answer all as the run did: the same answer to 11 of 12 test examples compared" in said
    assert f"base 0: the run '6 stars', the folder {first['prediction']!r}" in said
    assert "the run '6 stars'" in (tmp_path / "a" / "README.md").read_text()
    path.unlink()
    assert main([*command, str(tmp_path / "b")]) == 0
    assert "answers were not compared with the run's: the run kept none after that task" in capsys.readouterr().out
    assert main([*command, str(tmp_path / "c"), "--check", "some"]) == 2
    assert "Type: --check 100 (or all, or 0)" in capsys.readouterr().err


def test_a_method_whose_memory_is_gone_is_exported_as_a_model_and_says_so(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(made.run("mbpa-bert")[0], run)
    shutil.rmtree(run / "states")
    assert main(["export", str(run), "--after", "kettles", "--output", str(tmp_path / "a"), "--check", "0"]) == 0
    said = capsys.readouterr().out
    assert "Note: the folder does not answer as the run did: the answers are mbpa's, and what it knew after" in said
    assert "checkpoint.after_tasks=true" in said and (tmp_path / "a" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "pickle"}, "is damaged, or of another version of cl_runner"),
        ({"method": {"mine": {"_target_": "os.system"}}}, "a method of your own, mine, and no code is loaded"),
        ({"folders": {"base": "../base"}}, "which is no folder in it"),
        ({"encoders": {"method.slm.encoder.checkpoint": {"bert/config.json": "0"}}}, "is another one than the run's"),
    ],
)
def test_a_folder_is_data_that_is_checked(change: dict[str, Any], message: str, made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(made.exported("slm-bert")[0], folder)
    path = folder / "cl_runner.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        cl_runner.load(folder)
    with pytest.raises(ValueError, match="so it is no exported folder"):
        cl_runner.load(tmp_path)


class Hub:
    """Stands in for huggingface_hub's HfApi."""

    done: list[tuple[Any, ...]]
    fails: str = ""

    def whoami(self) -> dict[str, str]:
        if self.fails == "whoami":
            raise OSError("no network")
        return {"name": "me"}

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
        Hub.done.append((name, private, exist_ok))

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        if self.fails == "upload_folder":
            raise OSError("the connection broke")
        Hub.done.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))


def test_the_hub(made: Made, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    token: list[str | None] = [None]
    monkeypatch.setattr("cl_runner.handover.push.get_token", lambda: token[0])
    monkeypatch.setattr("cl_runner.handover.push.HfApi", Hub)
    Hub.done = []

    def export(*more: str) -> tuple[Path, int]:
        return made.exported("piece_s-bert", *more, check="0")

    for words, message in (
        (("--push", "me/model"), "none is set. Type: hf auth login"),
        (("--push", "model"), "Type: --push NAMESPACE/model"),
        (("--push", "me/mo del"), "--push me/mo del"),
        (("--private",), "Type: --push NAMESPACE/NAME --private"),
    ):
        folder, status = export(*words)
        assert status == 2 and message in capsys.readouterr().err and not folder.exists()
    token[0] = "a token"
    monkeypatch.setattr(Hub, "fails", "whoami")
    folder, status = export("--push", "me/model")
    assert status == 2 and "does not know who asks (no network)" in capsys.readouterr().err and not folder.exists()
    monkeypatch.setattr(Hub, "fails", "upload_folder")
    folder, status = export("--push", "me/model")
    assert status == 2 and f"Type: hf upload me/model {folder}" in capsys.readouterr().err
    assert (folder / "model.safetensors").is_file()
    monkeypatch.setattr(Hub, "fails", "")
    folder, status = export("--push", "me/other", "--private")
    assert status == 0 and "On the hub: https://huggingface.co/me/other" in capsys.readouterr().out
    assert Hub.done[-2:][0] == ("me/other", True, True)
    assert {"README.md", "cl_runner.json", "config.json", "model.safetensors"} <= set(Hub.done[-1][1])
    assert 'huggingface_hub.snapshot_download("me/other")' in (folder / "README.md").read_text()


LORA = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "bias": "none", "init_lora_weights": True}


@pytest.mark.parametrize(
    ("config", "tensors", "reason"),
    [
        ({}, (), ""),
        ({"modules_to_save": ["classifier"]}, ("base_model.model.classifier.weight",), ""),
        ({"modules_to_save": ["lm_head"]}, (), "modules_to_save holds lm_head"),
        ({"use_dora": True}, (), "DoRA"),
        ({"bias": "all"}, (), "biases"),
        ({"r": 600}, (), "rank 600 is more than 512"),
        ({"init_lora_weights": "pissa"}, (), "init_lora_weights=pissa"),
        ({"peft_type": "PROMPT_TUNING"}, (), "LoRA alone"),
        ({}, ("base_model.model.x.lora_magnitude_vector",), "no place for the tensor"),
    ],
)
def test_what_vllm_takes(config: dict[str, Any], tensors: tuple[str, ...], reason: str) -> None:
    names = ["base_model.model.x.q_proj.lora_A.weight", "base_model.model.x.q_proj.lora_B.weight", *tensors]
    found = vllm.refusals(LORA | config, names)
    assert reason in "; ".join(found) if reason else not found


def test_what_is_said_of_vllm(made: Made) -> None:
    text = (made.exported("seq_lora-llama")[0] / "README.md").read_text()
    assert "would take the adapter" in text and "vllm serve FOLDER/backbone --enable-lora" in text
    text = (made.exported("piece_s-bert")[0] / "README.md").read_text()
    assert "BertForSequenceClassification is in its list" in text
    assert "vLLM has no loader for it" in (made.exported("slm-bert")[0] / "README.md").read_text()
    assert (
        "would refuse the adapter: it takes LoRA alone"
        in (made.exported("prog_prompt-llama")[0] / "README.md").read_text()
    )


def test_paths_of_the_machine_and_licences(tmp_path: Path, made: Made) -> None:
    said = shown("python -m cl_runner root=/home/me/runs 'data_root=/data/x y' https://a.b/c/d m=[a/b]")
    assert said == "python -m cl_runner root=runs 'data_root=x y' https://a.b/c/d m=[a/b]"
    backbone = made.run("piece_s-bert")[1].family.backbone
    shutil.copytree(made.exported("piece_s-bert")[0], tmp_path / "base")
    named = backbone.model_copy(update={"checkpoint": str(tmp_path / "base")})
    assert licence_of(backbone) is None and licence_of(named) is None
    (tmp_path / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# It\n")
    assert licence_of(named) == "apache-2.0"
