"""The command `snapshot export`: write the folder, load it anew, compare its answers, say what it is, push it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import transformers
from safetensors import SafetensorError

from cl_runner.arguments import COMPARED, SNAPSHOT, unwritable
from cl_runner.config import Config
from cl_runner.digests import give_rights
from cl_runner.handover import card, comparing, use
from cl_runner.handover.push import Repository
from cl_runner.handover.writing import NoForm, Written, write
from cl_runner.history.history import chain_to, find_task, rebuild_model
from cl_runner.plain import say
from cl_runner.sparse.snapshots import describe_snapshot


@dataclass(frozen=True)
class Asked:
    """What is typed.

    Attributes:
        check: examples to compare; None = all, 0 = none.
        push: NAMESPACE/NAME, or None.
    """

    run: Path
    after: str
    output: Path
    merge: bool = False
    check: int | None = COMPARED
    push: str | None = None
    private: bool = False


def export(asked: Asked) -> int:
    """Write a folder that others load.

    Returns:
        0 done; 1 it is written and does not answer as the run did.

    Raises:
        ValueError: the request is wrong or the folder cannot be written, and nothing is left of it; or the hub did not
            take it, and it is whole.
    """
    output = asked.output
    if os.path.isdir(output) and any(output.iterdir()):
        raise ValueError(f"--output {output} is not empty; choose a new folder")
    if os.path.exists(output) and not os.path.isdir(output):
        raise ValueError(f"cannot write {output}: it is not a folder; choose a new one")
    if asked.private and asked.push is None:
        raise ValueError("--private is about a place on the hub. Type: --push NAMESPACE/NAME --private")
    snapshot = (
        Path(asked.after) if asked.after.endswith(".safetensors") else find_task(asked.run, asked.after, "--after TASK")
    )
    chain = chain_to(snapshot, asked.run)
    described = describe_snapshot(chain[-1])
    repository = None if asked.push is None else Repository(asked.push, asked.private)
    existed = os.path.isdir(output)
    transformers.logging.set_verbosity_error()  # of a base model that has no head, which is told elsewhere
    try:
        output.mkdir(parents=True, exist_ok=True)
        rebuilt = rebuild_model(asked.run, described.index + 1)
        written = write(rebuilt, chain, described.index, asked.run, _named(asked.after), output, asked.merge)
        architecture = type(rebuilt.model).__name__
        compared = _compared(asked, written, rebuilt.config, described.index)
        told = use.of_vllm(written.manifest, architecture, output, rebuilt.config.backbone)
        facts = card.Facts(written.manifest, rebuilt.config, compared, told, written.inexact, asked.push)
        card.write(output, asked.run, facts)
        for path in output.rglob("*"):
            if path.is_file():
                give_rights(path)
    except BaseException as error:  # new or empty before, see above
        shutil.rmtree(output, ignore_errors=True)
        if existed:
            output.mkdir()
        if isinstance(error, (OSError, SafetensorError)):
            raise unwritable(output, error) from None
        if isinstance(error, NoForm):
            raise ValueError(
                f"the model of {asked.run} cannot be exported: {error}. All weights in one file: {SNAPSHOT} restore "
                f"{asked.run} --after {asked.after} --output FILE.safetensors"
            ) from None
        raise
    say(f"{output}: the model after {asked.after} with its tokenizer; load it with {written.how}")
    asking = "" if compared.why_not else f" ({compared.seconds:.1f} s)"
    say(f"{'Note:' if compared.why_not else 'It'} {compared.said()}{asking}")
    for line in compared.listed():
        say(f"  {line}")
    if written.inexact:
        say(f"Note: the folder does not answer as the run did: {written.inexact}")
    say(f"{told}; vLLM itself was not run")
    if repository is not None:
        say(f"On the hub: {repository.upload(output)}")
    return 1 if compared.differing and not written.inexact else 0


def _named(after: str) -> str:
    """A task, or a snapshot's file without the folder that it lies in here."""
    return Path(after).name if after.endswith(".safetensors") else after


def _compared(asked: Asked, written: Written, config: Config, index: int) -> comparing.Compared:
    """Ask the folder what the run answered, where it kept answers of these weights."""
    if asked.check == 0:
        return comparing.Compared(why_not="it was not asked for (--check 0)")
    if asked.after.endswith(".safetensors"):
        return comparing.Compared(why_not="the run never had these weights")
    return comparing.compare(asked.output, asked.run, config, index + 1, asked.check)
