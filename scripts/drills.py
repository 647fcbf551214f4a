"""Disturb small runs at random moments, type the same line again until it is finished, and compare bit for bit.

    python scripts/drills.py [--count 100] [--only 7,12] [--seed 0] [--folder outputs/drills] [OVERRIDES ...]

A drill is one run of a method and family in turn, every third one of two processes (gloo). It is killed, or told to
stop by SIGTERM or SIGUSR2, at a moment that its number and the seed draw: while it starts, works before a task
(importance, recorded outputs, keys), trains, evaluates, saves, or ends. Its end must be the one of the run that
nothing happened to: the hash of the weights, both matrices, all numbers but the speed, predictions and snapshots.

A run that is disturbed while it starts is the command itself, two processes of it below torchrun. The others are
forked, with the variables that torchrun sets, from this process, which has imported all that they need: of their
seconds most would be spent on that.

Interrupted, the same line goes on where it was; `--only` repeats drills by their numbers. Overrides take the place of
the methods in turn. FOLDER/drills.json has every drill; the folder of a run that failed stays. Exit status 0 only if
all ends are equal.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from drill_runs import Started, Watched, as_run, end_of, forked, import_all, launched, place_of
from golden_rows import once, write_encoder

TOP = Path(__file__).resolve().parents[1]
#: Three tasks in a second; a checkpoint after every step, and passes of two examples, which two processes share.
COMMON = (
    "task_order=reviews",
    "task_order.tasks=[{name: base, domains: [novels, films]}, {name: kettles}, {name: software}]",
    "task_order.base.train=36",
    "task_order.base.test=12",
    "task_order.incremental.train=18",
    "task_order.incremental.test=6",
    "training.base.epochs=2",
    "training.incremental.epochs=2",
    "training.base.batch_size=8",
    "training.incremental.batch_size=8",
    "training.base.micro_batch=2",
    "training.incremental.micro_batch=2",
    "checkpoint.every_seconds=0.01",
    "hardware=cpu",
    "hardware.threads=1",
    "wandb=disabled",
    "snapshots.save=all",
)
#: For `slm`: its room before the text, and a sentence encoder that is written by golden_rows.
RETRIEVAL = (
    "method.slm.encoder.checkpoint={encoder}",
    "method.slm.encoder.revision=null",
    "method.slm.encoder.package=null",
    "method.slm.encoder.weights_sha256=null",
    "method.slm.key_steps=0",
    "backbone.max_length=44",
)
#: Thirteen, so that one and two processes, which take turns by three, come to each of them.
SETTINGS: dict[str, tuple[str, ...]] = {
    "pe-bert": ("method=pe", "backbone=tiny_bert"),
    "piece_s-llama": ("method=piece_s", "backbone=tiny_llama"),
    "seq_ft-t5": ("method=seq_ft", "backbone=tiny_t5"),
    "ewc-bert": ("method=ewc", "backbone=tiny_bert"),
    "replay-llama": ("method=replay", "backbone=tiny_llama"),
    "lora-gpt2": ("method=lora", "backbone=tiny_gpt2"),
    "slm-bert": ("method=slm", "backbone=tiny_bert", *RETRIEVAL),
    "der-bert": ("method=der", "backbone=tiny_bert"),
    "o_lora-llama": ("method=o_lora", "backbone=tiny_llama"),
    "lwf_piece-t5": ("method=lwf_piece", "backbone=tiny_t5"),
    "gem-bert": ("method=gem", "backbone=tiny_bert"),
    "l2p-t5": ("method=l2p", "backbone=tiny_t5"),
    "sdft-llama": ("method=sdft", "backbone=tiny_llama"),
}
SIGNALS = ("KILL", "TERM", "USR2")
#: Seconds for a run to end by itself, and for what it started to be gone.
PATIENCE = 180.0


def undisturbed(processes: int, overrides: Sequence[str], root: Path, printed: Path) -> dict[str, Any]:
    """Its end, and the moments that there are to choose from.

    Raises:
        RuntimeError: it does not end well.
    """
    watched, run = Watched(root), launched(processes, [*overrides, f"root={root}"], printed)
    while not run.ended():
        watched.look()
        time.sleep(0.005)
    if any(run.statuses()):
        raise RuntimeError(f"the undisturbed run ended with status {run.statuses()}: {printed}")
    watched.look()
    made_with = json.loads(next(root.rglob("environment.json")).read_text(encoding="utf-8"))
    counted = {name: getattr(watched, name) for name in ("work", "evaluations", "steps", "first", "last", "seconds")}
    return {"end": end_of(root), "made_with": made_with, **counted}


def moment_of(drawn: random.Random, whole: dict[str, Any]) -> tuple[str, int, float]:
    """(phase, which one of its kind, seconds after it began) of a disturbance."""
    phases = ["start", "importance", "training", "evaluation", "saving", "end"]
    if not whole["work"]:
        phases.remove("importance")
    phase = drawn.choice(phases)
    if phase == "start":
        return phase, 0, drawn.uniform(0, whole["first"])
    if phase == "end":
        return phase, 0, drawn.uniform(0, whole["seconds"] - whole["last"])
    kinds = {"importance": "work", "evaluation": "evaluations"}
    delay = 0.0 if phase == "saving" else drawn.uniform(0, 0.15)
    return phase, drawn.randint(1, whole[kinds.get(phase, "steps")]), delay


def wait_for(moment: tuple[str, int, float], whole: dict[str, Any], watched: Watched, run: Started) -> None:
    """Return when the moment has come, or the run has ended before."""
    phase, which, delay = moment
    while not run.ended():
        watched.look()
        come = {
            "start": True,
            "importance": watched.work >= which,
            "evaluation": watched.evaluations >= which,
            "end": watched.steps == whole["steps"] and watched.evaluations == whole["evaluations"],
        }.get(phase, watched.steps >= which)
        if come:
            break
        time.sleep(0.002)
    if phase == "saving":
        until = time.perf_counter() + 2
        while not run.ended() and time.perf_counter() < until and not watched.saves():
            pass
    run.statuses(delay)


def disturb(name: str, whom: str, run: Started) -> None:
    """Signal the run, or what of it `whom` says: all, the launcher, first, second."""
    workers, every = run.workers(), run.all()
    chosen = {"first": workers[:1], "second": workers[1:2], "launcher": every[:1]}.get(whom)
    if chosen is None:
        # torchrun itself does not know USR2; a cluster sends it to the processes of the run.
        chosen = workers if name == "USR2" else every
    for one in chosen or every:
        with suppress(psutil.NoSuchProcess):
            one.send_signal(getattr(signal, f"SIG{name}"))


def after(run: Started, started: Sequence[psutil.Process]) -> list[str]:
    """What is wrong with how the disturbed run ended."""
    wrong = [f"it had not ended after {PATIENCE:.0f} s"] if None in run.statuses(PATIENCE) else []
    _, left = psutil.wait_procs(started, PATIENCE / 3)
    wrong += [f"{len(left)} of its processes were left behind"] if left and not wrong else []
    for one in left:
        one.kill()
    run.statuses(PATIENCE)
    return wrong


def whole_of(setting: str, processes: int, overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """What the run gives that nothing happens to: made once."""
    kept, place = folder / f"{setting}-{processes}.json", folder / "whole"
    if not kept.is_file():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        whole = undisturbed(processes, overrides, place / "root", place / "printed.txt")
        kept.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(place)
    found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def drill(number: int, seed: int, setting: str, overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """One drill, and what came of it."""
    processes = 2 if number % 3 == 0 else 1
    whole = whole_of(setting, processes, overrides, folder)
    drawn = random.Random(f"{seed} {number}")
    moment, name = moment_of(drawn, whole), drawn.choice(SIGNALS)
    starting = moment[0] == "start"
    launcher = ["launcher"] if name == "TERM" and starting else []
    whom = drawn.choice(["all", "first", "second", *launcher]) if processes > 1 else ""
    place = folder / f"drill_{number}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    root, printed, began = place / "root", place / "printed.txt", time.perf_counter()
    line = [*overrides, f"root={root}"]
    watched, run = Watched(root), (launched if starting else forked)(processes, line, printed)
    wait_for(moment, whole, watched, run)
    finished = run.ended()
    stood = "it had ended" if finished else place_of(root).replace(f"{root}/", "")
    started = run.all()
    disturb(name, whom, run)
    wrong = after(run, started)
    statuses = run.statuses()
    # A launcher ends with its own status and words; before a run can hear, a signal ends it as it ends any process.
    if not (starting and processes > 1):
        fine = {0, 75, 1 if processes > 1 else 0, -getattr(signal, f"SIG{name}") if starting or name == "KILL" else 0}
        wrong += [] if {*statuses} <= fine else [f"it ended with status {statuses}"]
        wrong += ["it ended with a traceback"] if "Traceback" in printed.read_text(encoding="utf-8") else []
    last = forked(processes, line, printed).statuses(PATIENCE)
    wrong += [f"the same line ended with status {last}"] if any(last) else []
    if not any(last):
        found = end_of(root)
        different = sorted(key for key in {*found, *whole["end"]} if found.get(key) != whole["end"].get(key))
        wrong += [f"different: {', '.join(different)}"] if different else []
    if not wrong:
        shutil.rmtree(place)
    return {
        "number": number,
        "setting": setting,
        "processes": processes,
        "signal": name,
        "whom": whom,
        "phase": moment[0],
        "which": moment[1],
        "seconds_after": round(moment[2], 4),
        "stood": stood,
        "status": statuses,
        "seconds": round(time.perf_counter() - began, 1),
        "wrong": wrong,
    }


def row(done: dict[str, Any]) -> str:
    """A drill as a line of the table."""
    whom = f"{done['processes']} {done['whom']}".strip()
    told = f"{done['number']:>4}  {done['setting']:<14} {whom:<11} {done['signal']:<5} {done['phase']:<11}"
    return f"{told} {done['seconds']:>6.1f} s  {'; '.join(done['wrong']) or 'equal':<8} {done['stood'][:60]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--only", default="", help="numbers of drills to run again, as 7,12")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, default=TOP / "outputs" / "drills")
    given, typed = parser.parse_known_args()
    paths = os.pathsep.join([str(TOP), os.environ.get("PYTHONPATH", "")])
    # Before torch is imported.
    os.environ |= {
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    sys.path.insert(0, str(TOP))
    import_all()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"typed": tuple(typed)} if typed else SETTINGS
    numbers = [int(number) for number in given.only.split(",") if number] or range(1, given.count + 1)
    record = folder / "drills.json"
    drills = json.loads(record.read_text(encoding="utf-8"))["drills"] if record.is_file() else {}
    for number in numbers:
        if str(number) in drills and not given.only:
            continue
        setting = list(settings)[number % len(settings)]
        encoder = str(once(folder / "encoder", write_encoder) / "whole") if setting.startswith("slm") else ""
        own = [override.replace("{encoder}", encoder) for override in settings[setting]]
        keys = {override.partition("=")[0] for override in own}
        overrides = [*(o for o in COMMON if o.partition("=")[0] not in keys), *own]
        drills[str(number)] = done = drill(number, given.seed, setting, overrides, folder)
        print(row(done), flush=True)
        write(record, given.seed, drills, folder)
    told = [drills[str(number)] for number in numbers]
    equal = sum(not done["wrong"] for done in told)
    print(f"{equal} of {len(told)} ends are bitwise equal, {sum(done['seconds'] for done in told):.0f} s")
    return 0 if equal == len(told) else 1


def write(record: Path, seed: int, drills: dict[str, Any], folder: Path) -> None:
    """All drills so far, with what they were made with, in the place of what was written before."""
    whole = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*-[12].json"))}
    made_with = next(iter(whole.values()))["made_with"]
    text = json.dumps(
        {
            "seed": seed,
            "equal": sum(not done["wrong"] for done in drills.values()),
            "of": len(drills),
            "seconds": round(sum(done["seconds"] for done in drills.values())),
            "by": {
                name: dict(sorted(Counter(str(done[name]) for done in drills.values()).items()))
                for name in ("setting", "processes", "signal", "phase")
            },
            "made_with": {name: made_with[name] for name in ("python", "platform", "packages", "hardware")},
            "drills": {number: drills[number] for number in sorted(drills, key=int)},
        },
        indent=1,
    )
    temporary = record.with_suffix(".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(record)


if __name__ == "__main__":
    sys.exit(as_run(sys.argv[2:]) if sys.argv[1:2] == ["as-run"] else main())
