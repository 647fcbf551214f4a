"""Snapshots from strangers: forged headers, metadata, positions and chains are answered; `verify` knows them all."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stored import make_run, snapshots, starting_weights

from cl_runner.history.command import main
from cl_runner.sparse.snapshots import describe_snapshot, read_snapshot, verify_snapshot
from cl_runner.sparse.stored_header import LONGEST, compact, content_digest

#: Of a run whose first snapshot is whole, so that it needs no model: one that is restored.
WHOLE: dict[str, list[int] | None] = {"encoder.weight": None, "head.weight": None, "scale": None}


class Forged:
    """A snapshot's header and bytes, to change at will and to write with hashes that fit."""

    def __init__(self, path: Path):
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        self.path = path
        self.header: dict[str, Any] = json.loads(content[8 : 8 + length])
        self.body = bytearray(content[8 + length :])

    @property
    def metadata(self) -> dict[str, Any]:
        found: dict[str, Any] = self.header["__metadata__"]
        return found

    def entry(self, key: str) -> dict[str, Any]:
        found: dict[str, Any] = self.header[key]
        return found

    def tensors(self) -> None:
        """Hashes of the tensors as they are."""
        names = sorted({key.partition("/")[2] for key in self.header if key != "__metadata__"})
        digests = []
        for name in names:
            sha = hashlib.sha256()
            for kind in ("change", "dense", "gap"):
                if f"{kind}/{name}" in self.header:
                    begin, end = self.entry(f"{kind}/{name}")["data_offsets"]
                    sha.update(self.body[begin:end])
            digests.append(sha.hexdigest())
        self.metadata["sha256"] = " ".join(digests)

    def sealed(self) -> str:
        """The header's text, with a hash of it that fits where there is room for one."""
        if isinstance(self.header.get("__metadata__"), dict):
            self.metadata["content"] = content_digest(self.header)
        return compact(self.header)

    def write(self, text: str | bytes | None = None, length: int | None = None) -> None:
        data = self.sealed() if text is None else text
        data = data.encode() if isinstance(data, str) else data
        data += b" " * (-len(data) % 8)
        size = len(data) if length is None else length
        self.path.write_bytes(struct.pack("<Q", size % 2**64) + data + bytes(self.body))


def gaps(forged: Forged, *values: int) -> None:
    """Other gaps of the first sparse tensor, as many as there were."""
    begin, end = forged.entry("gap/encoder.weight")["data_offsets"]
    forged.body[begin:end] = struct.pack(f"<{len(values)}H", *values)
    forged.tensors()
    forged.write()


def setting(place: str, value: Any) -> Callable[[Forged], None]:
    """A forgery: one value of the header, at a path such as change/w|shape, with hashes that fit."""

    def forge(forged: Forged) -> None:
        *above, last = place.split("|")
        node: Any = forged.header
        for key in above:
            node = node[key]
        if value is ...:
            del node[last]
        else:
            node[last] = value
        forged.write()

    return forge


def model(change: Callable[[dict[str, Any]], Any]) -> Callable[[Forged], None]:
    """A forgery of the model's description."""

    def forge(forged: Forged) -> None:
        found = json.loads(forged.metadata["model"])
        forged.metadata["model"] = json.dumps(change(found) or found, separators=(",", ":"))
        forged.write()

    return forge


CHANGE, GAP, META = "change/encoder.weight", "gap/encoder.weight", "__metadata__"
#: Each is done to the second snapshot, of three entries of encoder.weight [6, 5].
FORGERIES: dict[str, Callable[[Forged], None]] = {
    **{f"{key} is {value!r}"[:60]: setting(f"{META}|{key}", value) for key in
       ("task", "index", "method", "model", "sha256", "format") for value in (5, None, [], {"a": 1}, ...)},
    **{f"index {v!r}"[:40]: setting(f"{META}|index", v) for v in ("-1", "1e3", "", "9" * 5000, "٣", "01")},
    **{f"method {v[:20]!r}": setting(f"{META}|method", v) for v in ("5", "[", "", "[" * 100_000, '{"a":' * 900)},
    **{f"model {v[:20]!r}": setting(f"{META}|model", v) for v in
       ("{}", "[]", "5", "NaN", '{"a":["F32",3],"a":["F32",3]}', '{"a":' * 100_000)},
    **{f"metadata {v!r}": setting(META, v) for v in (5, [], "text", None, {})},
    **{f"entry {v!r}"[:40]: setting(CHANGE, v) for v in (5, [], {}, "x", None, ...)},
    **{f"dtype {v!r}"[:40]: setting(f"{CHANGE}|dtype", v) for v in
       ("F32", "F8_E4M3", "BOOL", "U16", 5, [], None, "I64")},
    **{f"shape {v!r}"[:40]: setting(f"{CHANGE}|shape", v) for v in
       (5, [10**11], [-3], [3.0], [True] * 3, ["3"], [3, 10**30], [0], [2], [[3]], None, [2**64 + 3], [1] * 100)},
    **{f"place {v!r}"[:40]: setting(f"{CHANGE}|data_offsets", v) for v in
       ([0], [0, -12], [12, 0], [0, 10**12], [0.0, 12.0], [4, 16], "0", None, [False, 12], [6, 18], [0, 12, 12])},
    "gap dtype": setting(f"{GAP}|dtype", "I16"),
    "gap shape": setting(f"{GAP}|shape", [3, 1]),
    "no gap": setting(GAP, ...),
    "no change": setting(CHANGE, ...),
    "another name": lambda f: (f.header.update({"change/other": f.header.pop(CHANGE)}), f.write())[1],
    "another kind": lambda f: (f.header.update({"delta/encoder.weight": f.header.pop(CHANGE)}), f.write())[1],
    "dense beside sparse": lambda f: (f.header.update({"dense/encoder.weight": f.header[CHANGE]}), f.write())[1],
    "a tensor more": lambda f: (f.header.update({"change/scale": f.header[CHANGE]}), f.write())[1],
    "a hash more": lambda f: (f.metadata.update(sha256=f.metadata["sha256"] + " " + "0" * 64), f.write())[1],
    "no hash": lambda f: (f.metadata.update(sha256=""), f.write())[1],
    "positions twice": lambda f: gaps(f, 3, 0, 1),
    "positions beyond": lambda f: gaps(f, 3, 3, 24),
    "only skips": lambda f: gaps(f, 65535, 65535, 65535),
    "a skip at the end": lambda f: gaps(f, 3, 3, 65535),
    "a type that there is not": model(lambda m: m.update(scale=["F8"])),
    "a list for a type": model(lambda m: m.update(scale=[["F32"]])),
    "a shape of texts": model(lambda m: m.update(scale=["F32", "3"])),
    "a model of another shape": model(lambda m: m.update({"encoder.weight": ["F32", 60, 50]})),
    "a larger model": model(lambda m: m.update(more=["F32", 10**12])),
    "another model's names": model(lambda m: {f"x.{name}": kind for name, kind in m.items()}),
    "weights that they are not": setting(f"{META}|weights", "0" * 64),
    "another parent": setting(f"{META}|parent", "f" * 64),
    "its own parent": lambda f: (f.metadata.update(parent=f.metadata["weights"]), f.write())[1],
    "the base for a parent": lambda f: (f.metadata.update(parent="0" * 64, base="0" * 64), f.write())[1],
    "bits of other changes": lambda f: (f.body.__setitem__(0, f.body[0] ^ 255), f.tensors(), f.write())[2],
    "escape sequences": lambda f: (f.metadata.update(task="\x1b[31mred\x1b]0;x\x07\n\u202e"), f.write())[1],
    "no json": lambda f: f.write("no json at all"),
    "no utf-8": lambda f: f.write(b'{"\xff\xfe": 1}'),
    "deep json": lambda f: f.write("[" * 200_000),
    "a number": lambda f: f.write("5"),
    "infinity": lambda f: f.write(f.sealed().replace('"shape":[3]', '"shape":[Infinity]')),
    "a key twice": lambda f: f.write(f.sealed().replace(f'"{CHANGE}":', f'"{CHANGE}":5,"{CHANGE}":', 1)),
    "blanks": lambda f: f.write(f.sealed().replace(":", ": ")),
    "a large integer": lambda f: f.write(f.sealed().replace('"shape":[3]', f'"shape":[{"9" * 10_000}]')),
    "a header as long as the file": lambda f: f.write(length=2**63),
    "a header of 2^64 - 8": lambda f: f.write(length=-8),
    "no header": lambda f: f.write(length=0),
    "a header of many small things": lambda f: f.write("[" + "{}," * (LONGEST // 3 - 20) + "{}]"),
    "a long header": lambda f: f.write("[" + "0," * LONGEST + "0]"),
    "bytes more": lambda f: (f.body.extend(b"abcd"), f.write())[1],
    "bytes fewer": lambda f: (f.body.__delitem__(slice(-2, None)), f.write())[1],
    "a hole of a terabyte": lambda f: (f.write(), os.truncate(f.path, 10**12))[1],
    "empty": lambda f: f.path.write_bytes(b""),
    "seven bytes": lambda f: f.path.write_bytes(b"1234567"),
}  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    make_run(folder, starting_weights(), WHOLE)
    return folder


def answers(
    run: Path, output: Path, capsys: pytest.CaptureFixture[str], everything: bool = True
) -> tuple[list[int], str]:
    """Exit statuses of verify and of restore after every snapshot, and all that was printed.

    Args:
        everything: False of what takes seconds to parse: once is enough.
    """
    files = snapshots(run)
    statuses = [main(["verify", str(run if everything else files[1])])]
    if not everything:
        return [*statuses, 2 * statuses[0]], capsys.readouterr().out
    statuses += [main(["restore", str(run), "--after", str(file), "--output", str(output)]) for file in files]
    for more in (["list"], ["size"], ["overlap"], ["size", "--json"]):
        assert main([more[0], str(run), *more[1:]]) in (0, 2)
    assert main(["diff", str(files[1]), str(files[2])]) in (0, 2)
    assert main(["revert", str(files[1]), "--output", str(output)]) in (0, 2)
    assert main(["compose", str(files[1]), str(files[2]), "--output", str(output)]) in (0, 2)
    shown = capsys.readouterr()
    return statuses, shown.out + shown.err


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_snapshots(forgery: str, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No traceback, no escape sequence, little memory, and `verify` finds what `restore` cannot use."""
    run = tmp_path / "run"
    shutil.copytree(sound, run)
    path = snapshots(run)[1]
    forged = Forged(path)
    FORGERIES[forgery](forged)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (verified, *restored), shown = answers(run, tmp_path / "x.safetensors", capsys, "many small" not in forgery)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 800 * 1024, "kilobytes"
    assert verified == (1 if 2 in restored else 0), shown
    assert "\x1b" not in shown and "\u202e" not in shown and "Traceback" not in shown
    assert (verified == 0) == (forgery == "escape sequences"), shown
    if verified:
        assert str(path) in shown or "02_music" in shown


def test_the_first_snapshot_is_forged(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A whole model that is not the one it promises."""
    run = tmp_path / "run"
    shutil.copytree(sound, run)
    forged = Forged(snapshots(run)[0])
    forged.body[0] ^= 1
    forged.tensors()
    forged.write()
    (problem,) = verify_snapshot(forged.path)
    assert problem == f"{forged.path}: the weights in it are not those that it promises"
    (verified, *restored), shown = answers(run, tmp_path / "x.safetensors", capsys)
    assert verified == 1 and restored == [2, 2, 2] and "the restored weights are" in shown


def test_random_forgeries_of_a_header(sound: Path, tmp_path: Path) -> None:
    """Any value of a header for any other: `verify` and reading agree, and nothing but one error comes."""
    drawn = random.Random(0)
    values = [0, -1, 2**63, 1e999, 0.5, True, None, "", "x", [], [0], {}, "\x1b[2J", "U16", [3], "0" * 64]
    for number in range(150):
        path = tmp_path / "x.safetensors"
        shutil.copy(snapshots(sound)[drawn.randrange(2)], path)
        forged = Forged(path)
        for _ in range(drawn.randint(1, 2)):
            node: Any = forged.header
            while isinstance(node, (dict, list)) and node:
                key = drawn.choice(sorted(node) if isinstance(node, dict) else range(len(node)))
                if not isinstance(node[key], (dict, list)) or drawn.random() < 0.3:
                    node[key] = drawn.choice(values)
                    break
                node = node[key]
        forged.write()
        found = verify_snapshot(path)
        try:
            read_snapshot(path)
            describe_snapshot(path)
            assert all("not those that it promises" in problem for problem in found), number
        except ValueError as error:
            assert found and str(path) in str(error), number
