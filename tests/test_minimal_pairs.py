"""Minimal pairs against brute force and the lm-evaluation-harness, and what is said of files that hold none."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from probing import likelihood, probed, state
from tiny import tiny

from cl_runner.batch import Batch
from cl_runner.compose import compose
from cl_runner.learner import Learner
from cl_runner.probes.minimal_pairs import MinimalPairs

PAIRS = [
    {"good": "The cats sleep.", "bad": "The cats sleeps.", "phenomenon": "agreement"},
    {"good": "Who did she see?", "bad": "Did who she see?", "phenomenon": "islands"},
    {"good": "A dog, which barks", "bad": "A dog, which bark", "phenomenon": "agreement"},
    {"good": "ü", "bad": "ü, ü, und noch viel mehr davon", "phenomenon": "length"},
    {"good": "no", "bad": "on", "phenomenon": "agreement"},
]


def write_pairs(path: Path, pairs: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(pairs), path)
    elif path.suffix == ".csv":
        rows = [list(pairs[0]), *(list(pair.values()) for pair in pairs)]
        path.write_text("".join(",".join(f'"{cell}"' for cell in row) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return path


def asked(file: Path, **options: Any) -> MinimalPairs:
    """The probe alone."""
    given = {"good": "good", "bad": "bad", "phenomenon": "phenomenon", "limit": None, "prefix": "", "batch_size": 2}
    probe = MinimalPairs(**{"path": str(file), **given, **options})
    probe.node = "minimal_pairs"
    return probe


@torch.no_grad()
def alone(learner: Learner, sentence: str) -> float:
    """log p of a sentence, of an encoder-decoder where the encoder reads the token that begins a text."""
    if learner.family.kind == "causal":
        return likelihood(learner, "", sentence)
    tokenizer = learner.family.tokenizer
    target = torch.tensor([tokenizer(sentence, add_special_tokens=False)["input_ids"]])
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    logits = learner.model(input_ids=torch.tensor([[first]]), labels=target).logits[0].log_softmax(-1)
    return float(logits.gather(1, target[0][:, None]).sum())


@pytest.mark.parametrize("backbone", ["tiny_llama", "tiny_t5"])
def test_the_more_probable_sentence_is_what_brute_force_finds(backbone: str, tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs.csv", PAIRS)
    key = "probe.minimal_pairs"
    learner, probe, folder = probed(
        tmp_path, f"backbone={backbone}", "probe=minimal_pairs", f"{key}.path={path}", f"{key}.batch_size=3"
    )
    learner.model.train()
    before = state(learner)
    probe.check()
    probe.prepare(learner, folder)
    path.unlink()  # what counts lies in the run's folder
    found = probe.measure(learner, folder, "start")
    assert state(learner) == before
    learner.model.eval()

    kept = json.loads((folder / "scores_start.json").read_text())
    for column in ("good", "bad"):
        assert kept[column] == pytest.approx([alone(learner, pair[column]) for pair in PAIRS], abs=1e-4)
    right = [100.0 * (good > bad) for good, bad in zip(kept["good"], kept["bad"], strict=True)]
    of_each = {"agreement": (right[0] + right[2] + right[4]) / 3, "islands": right[1], "length": right[3]}
    assert of_each["length"] == 100  # of sums, not of means
    assert found == pytest.approx({"mean": sum(of_each.values()) / 3} | of_each)
    with torch.no_grad():
        learner.model.get_output_embeddings().weight.zero_()  # every token is as probable as any other
    assert probe.measure(learner, folder, "base")["islands"] == 50  # two sentences of one length


def test_any_file_and_any_columns(tmp_path: Path) -> None:
    found = [asked(write_pairs(tmp_path / f"pairs{form}", PAIRS)) for form in (".parquet", ".csv", ".jsonl")]
    assert found[0]._pairs == found[1]._pairs == found[2]._pairs
    assert [pair.row for pair in found[0]._pairs] == [1, 2, 3, 4, 5]
    renamed = [{"sentence_good": p["good"], "sentence_bad": p["bad"], "UID": i % 2} for i, p in enumerate(PAIRS)]
    path = write_pairs(tmp_path / "renamed.parquet", renamed)
    probe = asked(path, good="sentence_good", bad="sentence_bad", phenomenon="UID", limit=1)
    assert [(pair.row, pair.phenomenon) for pair in probe._pairs] == [(1, "0"), (2, "1")]
    [read] = probe.passes([7])
    assert (read.texts, read.tokens, read.generated, read.batch_size) == (4, 5, 0, 2)
    alone = asked(path, good="sentence_good", bad="sentence_bad", phenomenon=None)
    assert len(alone._pairs) == 5 and {pair.phenomenon for pair in alone._pairs} == {"mean"}


MISTAKES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no file is named": (
        PAIRS,
        {"path": None},
        "needs a file of sentence pairs .* Type: probe.minimal_pairs.path=FILE",
    ),
    "no such file": (PAIRS, {"path": "{folder}/pair.jsonl"}, "pair.jsonl is no file. Nearest: 'pairs.jsonl'."),
    "a folder": (PAIRS, {"path": "{folder}"}, "is no file"),
    "another column": (
        [{"sentence_good": "a", "bad": "b", "phenomenon": "x"}],
        {},
        "has no column 'good' .* it has 'sentence_good', .* Type: .*probe.minimal_pairs.good=\"sentence_good\"",
    ),
    "a mistyped column": (
        PAIRS,
        {"bad": "bed"},
        "no column 'bed'.* Nearest: 'bad'. Type: .*probe.minimal_pairs.bad=\"bad\"",
    ),
    "no phenomenon": (
        [{"good": "a", "bad": "b"}],
        {},
        "no column 'phenomenon'.*, or probe.minimal_pairs.phenomenon=null",
    ),
    "a column that one row lacks": ([*PAIRS, {"good": "a", "phenomenon": "x"}], {}, "row 6 of .* has no 'bad'"),
    "no pairs": ([], {}, "holds no pairs"),
    "a number": ([{"good": 1, "bad": "b", "phenomenon": "x"}], {}, "row 1 of .* has no text as 'good' .* but 1"),
    "nothing": ([*PAIRS, {"good": "a", "bad": " ", "phenomenon": "x"}], {}, "row 6 of .* has nothing as 'bad'"),
    "equal sentences": (
        [{"good": "a", "bad": "a ", "phenomenon": "x"}],
        {},
        "row 1 of .* the same sentence twice: 'a'",
    ),
    "one column": (PAIRS, {"bad": "good"}, "are one column, 'good'"),
    "a phenomenon for each": (
        [{"good": f"a{i}", "bad": f"b{i}", "phenomenon": i} for i in range(30)],
        {},
        "another value in each of its 30 rows.* Type: probe.minimal_pairs.phenomenon=null",
    ),
    "the mean's name": ([{"good": "a", "bad": "b", "phenomenon": "mean"}], {}, "about 'mean'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_said_of_a_file(mistake: str, tmp_path: Path) -> None:
    pairs, options, said = MISTAKES[mistake]
    path = write_pairs(tmp_path / "pairs.jsonl", pairs)
    options = {name: value and value.format(folder=tmp_path) for name, value in options.items()}
    with pytest.raises(ValueError, match=said):
        asked(path, **options).check()


def test_what_is_said_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("a\tb\n")
    with pytest.raises(ValueError, match=r"is no .parquet, .csv, .tsv, .jsonl or .json file"):
        asked(tmp_path / "pairs.txt").check()
    (tmp_path / "pairs.csv").write_text('good,bad,phenomenon\n"a,b,c\n')
    with pytest.raises(ValueError, match=r"row 1 of .* opens a quote that no row closes. Write quotes"):
        asked(tmp_path / "pairs.csv").check()
    (tmp_path / "pairs.parquet").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"pointer of Git LFS"):
        asked(tmp_path / "pairs.parquet").check()
    with pytest.raises(ValueError, match=r"minimal_pairs needs a backbone of the families causal, seq2seq"):
        compose(tiny(tmp_path, "backbone=tiny_bert", "method=seq_ft", "probe=minimal_pairs"))


def test_sentences_that_the_model_cannot_tell_apart_or_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_pairs(tmp_path / "pairs.jsonl", PAIRS)
    learner, probe, folder = probed(tmp_path, "probe=minimal_pairs", f"probe.minimal_pairs.path={path}")
    said: list[str] = []
    learner.warn = said.append
    rows = [[1, 2], [1, 2], *([[3], [4, 5]] * 4)]
    monkeypatch.setattr(MinimalPairs, "_tokens", lambda *_: rows)
    probe.prepare(learner, folder)
    assert said and said[0].startswith("Note: 1 of the 5 pairs")
    short = SimpleNamespace(max_position_embeddings=2, model_type="llama")
    short.get_text_config = lambda: short
    monkeypatch.setattr(learner.model, "config", short)
    with pytest.raises(ValueError, match=r"row 1 of .* has a sentence of 3 tokens, .* reads 2"):
        probe.prepare(learner, folder)


def test_a_method_knows_each_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_pairs(tmp_path / "pairs.jsonl", PAIRS)
    learner, probe, folder = probed(tmp_path, "probe=minimal_pairs", f"probe.minimal_pairs.path={path}")
    known: dict[str, str] = {}

    def noted(_: Learner, batch: Batch) -> Batch:
        read = learner.family.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
        known.update(zip([example.prompt for example in batch.examples], read, strict=True))
        return batch

    monkeypatch.setattr(learner.method, "before_forward", noted)
    probe.prepare(learner, folder)
    probe.measure(learner, folder, "base")
    assert set(known) == {sentence for pair in PAIRS for sentence in (pair["good"], pair["bad"])}
    assert all(sentence == read for sentence, read in known.items())


TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
output_type: multiple_choice
test_split: test
doc_to_text: ""
doc_to_target: 0
doc_to_choice: "{{{{[good, bad]}}}}"
target_delimiter: "{delimiter}"
metric_list: [{{metric: acc}}]
"""


@pytest.mark.filterwarnings("default")  # of the harness and its own packages
@pytest.mark.parametrize("backbone", ["tiny_llama", "tiny_t5"])
def test_a_task_of_the_harness_agrees(backbone: str, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    (tmp_path / "tasks").mkdir()
    data, cache, key = write_pairs(tmp_path / "pairs.jsonl", PAIRS), tmp_path / "cache", "probe.minimal_pairs"
    for name, delimiter in (("plain", ""), ("spaced", " ")):
        task = TASK.format(name=name, data=data, cache=cache, delimiter=delimiter)
        (tmp_path / "tasks" / f"{name}.yaml").write_text(task)
        ours = ("probe=minimal_pairs", f"{key}.path={data}", f"{key}.phenomenon=null", f"{key}.prefix='{delimiter}'")
        theirs = ("probe=lm_eval", f"probe.lm_eval.tasks=[{name}]", f"probe.lm_eval.include_path={tmp_path}/tasks")
        found = []
        for overrides in (ours, theirs):
            learner, probe, folder = probed(tmp_path, f"backbone={backbone}", *overrides)
            probe.check()
            probe.prepare(learner, folder)
            found.append(probe.measure(learner, folder, "start"))
        assert found[1] == {f"{name}/acc": pytest.approx(found[0]["mean"])}
