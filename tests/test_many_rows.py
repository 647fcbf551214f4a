"""Data larger than memory: rows that lie on disk and tokens in many files give the run that few rows give."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from sources import counts, definition, order
from tiny import TINY, run_command, without_report

from cl_runner.data import spool
from cl_runner.data.task import _content, build_tasks, fingerprint
from cl_runner.families import encoding
from cl_runner.sequences import Chained, Mapped, View
from cl_runner.text_hashes import Places, first_places, hashes, shared, text_hash


def write(path: Path, rows: int) -> None:
    """Texts of which some come twice, with another answer."""
    lines = [{"text": f"text {row % (rows - 3)} says {row % 7}", "label": str(row % 3 % 2)} for row in range(rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_llama"])
def test_a_run_of_rows_on_disk_is_that_of_rows_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    for name, rows in (("train", 40), ("test", 10)):
        write(tmp_path / f"{name}.jsonl", rows)
    own = [o for o in TINY if not o.startswith(("backbone", "task_order", "snapshots", "training.base.epochs"))]
    line = [
        *own,
        *("method=[replay,ewc]", f"backbone={model}", "task_order=local_files", "training.base.epochs=2"),
        "task_order.tasks=[{name: a, domains: [x, y]}, {name: b}]",
        "task_order.base={train: 24, validation: 8, test: 8}",
        "task_order.incremental={train: 16, validation: 0, test: 6}",
        f'task.local_files.path="{tmp_path}/{{split}}.jsonl"',
        "task.local_files.template='{text}, {options}'",
        "task.local_files.balance=true",
    ]
    found = []
    for in_memory, shard in ((spool.IN_MEMORY, encoding.SHARD), (50, 7)):
        monkeypatch.setattr(spool, "IN_MEMORY", in_memory)
        monkeypatch.setattr(spool, "_last", None)
        monkeypatch.setattr(encoding, "SHARD", shard)
        root = tmp_path / str(shard)
        with without_report():
            assert run_command([*line, f"root={root}"]) == 0
        (folder,) = (path.parent for path in root.glob("**/COMPLETED"))
        weights = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["weights_sha256"]
        answers = [path.read_bytes() for path in sorted(folder.glob("predictions/*.jsonl"))]
        found.append((weights, answers, (folder / "data.json").read_bytes()))
        files = len(list((root / "cache" / "tokens").iterdir()))
        assert files == 1 if shard > 7 else files > 3
    assert found[0] == found[1]


def test_memory_of_a_row_is_that_of_its_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "IN_MEMORY", 1000)
    monkeypatch.setattr(spool, "_last", None)
    peaks = []
    for rows in (2_000, 12_000):
        for split in ("train", "test"):
            write(tmp_path / f"{split}.jsonl", rows if split == "train" else 10)
        made = order([{"name": "a"}], counts())
        tracemalloc.start()
        (task,) = build_tasks(made, {"own": definition(path=[[str(tmp_path / "{split}.jsonl")]])})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert len(task.train) == 12_000 and task.train[11_999].row == 11_999
    assert task.train[-1] == task.train[11_999:][0] and task.train[3].prompt == "text 3 says 3"
    assert (peaks[1] - peaks[0]) / 10_000 < 200, "a row as an object has ten times as much"


def test_a_full_disk_is_said_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    rows = spool.Spool()
    monkeypatch.setattr(rows._store._file, "write", full)
    with pytest.raises(OSError, match="No space left") as error:
        rows.add(("text",))
    assert str(error.value.filename).startswith(spool.tempfile.gettempdir())


def test_sequences_are_those_of_lists() -> None:
    items = list(range(10))
    chained = Chained([items[:4], [], View(items, range(4, 10))])
    doubled = Mapped(lambda item: 2 * item, chained)
    assert list(chained) == items == chained and len(chained) == 10 and chained[-1] == 9
    assert list(doubled[7:2:-2]) == [14, 10, 6] and doubled[2:][1:3] == [6, 8] and doubled != items
    assert View(items, np.array([3, 1])) == [3, 1] and Chained([]) == []
    with pytest.raises(IndexError):
        chained[10]


def test_hashes_find_texts() -> None:
    texts = ["b", "a", "b", "c", "a", ""]
    found = hashes(map(text_hash, texts))
    assert first_places(found).tolist() == [0, 1, 3, 5]
    assert shared(found, hashes(map(text_hash, ["a", "a", "d", ""]))) == 3
    assert text_hash("ab", "c") != text_hash("a", "bc") and not len(first_places(hashes(())))
    different = found[first_places(found)]
    alike = different.copy()
    alike[:, 0] = 5  # the first halves of all hashes
    for numbers in (different, alike):
        places = Places(numbers)
        assert [places.of(row.tobytes()) for row in numbers] == [0, 1, 2, 3]
        assert places.of(text_hash("other")) is None


def test_a_fingerprint_is_the_hash_of_all_that_a_task_holds(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / f"{split}.jsonl", 5)
    made = order([{"name": "a"}], counts(train=2, test=1))
    (task,) = build_tasks(made, {"own": definition(path=[[str(tmp_path / "{split}.jsonl")]])})
    splits = {split: tuple(getattr(task, split)) for split in ("train", "validation", "test")}
    content = dataclasses.asdict(dataclasses.replace(task, **splits), dict_factory=_content)
    text = json.dumps(content, separators=(",", ":"))
    assert len(task.train) == 2 and fingerprint(task) == hashlib.sha256(text.encode()).hexdigest()
