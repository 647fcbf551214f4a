"""The command line: a bare first word is a command (report, snapshot), anything else composes and runs.

Exit status: 0 done; 1 the run failed; 2 the request is wrong; 75 interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import cl_runner
from cl_runner import interrupt
from cl_runner.arguments import Parser
from cl_runner.full_disk import is_full, unusable
from cl_runner.interrupt import stopping
from cl_runner.streams import lasting_streams

#: command -> (module with main(arguments) -> exit status, what it does)
COMMANDS = {
    "cancel": ("cl_runner.sweeps.cancel", "stop jobs of a submitted sweep, which save what they have"),
    "choose": ("cl_runner.choosing.command", "the best try of each method by validation examples, and its test runs"),
    "compare": ("cl_runner.compare", "why two runs differ: configuration, program, machine, data, and where it shows"),
    "doctor": ("cl_runner.doctor", "versions, devices, disk, locks and a small run: whether this machine can run"),
    "draw": ("cl_runner.draw", "pictures of shapes with questions and captions, as files of a data root"),
    "figure": ("cl_runner.papers.figure_command", "figures of the papers drawn of runs, with their data"),
    "fork": ("cl_runner.fork", "a new run that goes on from another one after a task, under other settings"),
    "job": ("cl_runner.sweeps.one_job", "one job of a submitted sweep, as its batch script starts it"),
    "methods": ("cl_runner.catalogue.command", "every method: paper, what trains, what is kept; by name its options"),
    "orders": ("cl_runner.statistics.command", "balanced orders of a benchmark's tasks, and the line that runs them"),
    "papers": ("cl_runner.papers.entries_command", "every table and figure of the papers: its runs, and what shows it"),
    "plan": ("cl_runner.planning.command", "memory, disk and time that a run would take, without running it"),
    "prefetch": ("cl_runner.prefetch", "bring models, data and tokens of a run, which then needs no network"),
    "rescore": ("cl_runner.rescore", "kept predictions scored by another metric, without running anything again"),
    "report": ("cl_runner.report.command", "tables, pictures and an HTML page of one run or of many"),
    "resubmit": ("cl_runner.sweeps.resubmit", "submit again what of a sweep failed or is missing"),
    "snapshot": (
        "cl_runner.history.command",
        "list, size, verify, diff, overlap, compose, revert, restore or export what each task changed",
    ),
    "status": (
        "cl_runner.sweeps.status",
        "how jobs of submitted sweeps stand, and why",
    ),
    "submit": (
        "cl_runner.sweeps.submit",
        "give a multirun to SLURM or this machine, and return",
    ),
    "table": ("cl_runner.papers.command", "published tables of papers, beside them what runs measured"),
    "work": ("cl_runner.sweeps.worker", "run jobs of a submitted sweep on this machine, as submit starts it"),
}

HELP = """\
python -m cl_runner [GROUP=OPTION | KEY=VALUE ...]     one run; the same command resumes it
python -m cl_runner -m KEY=A,B ...                     one run for each combination
python -m cl_runner COMMAND ...                        {commands}

Flags: --cfg job (show the configuration, run nothing)   --config-dir DIR (more configuration files)   --version

Groups and their options:
{groups}

A list chains methods or merges task orders: 'method=[ewc,lwf,pe_select]' 'task_order=[reviews,joint]'."""


def flags() -> Parser:
    """Hydra's flags that this program passes on, and its own."""
    parser = Parser(prog="python -m cl_runner", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-c", "--cfg", choices=("job", "hydra", "all"))
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("-p", "--package")
    parser.add_argument("-i", "--info", nargs="?", const="all")
    parser.add_argument("--hydra-help", action="store_true")
    parser.add_argument("-sc", "--shell-completion", action="store_true")
    parser.add_argument("-cd", "--config-dir", action="append", default=[], type=Path)
    return parser


def help_text(folders: Sequence[Path] = ()) -> str:
    """Usage, commands, every option of every group with its file's first line, and what installed packages bring."""
    from cl_runner.groups import GROUPS, check_folders, options, purpose
    from cl_runner.registry import KINDS, installed

    check_folders(folders)
    lines = []
    for group in GROUPS:
        lines.append(f"  {group}")
        lines += [f"    {option:22} {purpose(group, option, folders)}".rstrip() for option in options(group, folders)]
    brought = [(kind, name, place) for kind in KINDS for name, place in installed(kind).items()]
    if brought:
        lines.append("\nOf installed packages:")
        lines += [f"  {kind:11} {name:22} {place}" for kind, name, place in brought]
    commands = "; ".join(f"{name}: {does}" for name, (_, does) in COMMANDS.items())
    return HELP.format(commands=commands, groups="\n".join(lines))


def fail(message: object) -> int:
    """One message for a wrong request."""
    print(f"cl_runner: {message}", file=sys.stderr)
    return 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        with suppress(RuntimeError, AttributeError, OSError, ValueError):  # of a process without standard error
            faulthandler.enable()  # what kills a process within a library's own code says where
    # While a run is under way it handles these signals itself, and saves first.
    before = {number: signal.signal(number, _interrupt) for number in stopping()}
    try:
        with lasting_streams() as lost:
            status = _caught(typed)
            if lost():
                print("cl_runner: the disk is full: not all that was printed could be written", file=sys.stderr)
                # What a run printed is in its log; what a command printed was what it is for.
                return status or int(bool(typed) and typed[0] in COMMANDS)
            return status
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _caught(typed: list[str]) -> int:
    """The command line; an interruption and a file that cannot be used end it with one message."""
    try:
        return _main(typed)
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on with what was begun.", file=sys.stderr)
        return 75
    except OSError as error:
        if error.filename is None:  # of no file: a fault, or the network's
            raise
        print(f"cl_runner: {unusable(error)}", file=sys.stderr)
        return 1 if is_full(error) else 2


class _Asked(KeyboardInterrupt):
    """A signal. KeyboardInterrupt itself, raised while text is executed, as imports do, would become the exit status
    of Python, whoever catches it."""


def _interrupt(number: int, frame: FrameType | None) -> None:
    interrupt.heard(number)
    raise _Asked


def _main(typed: list[str]) -> int:
    if typed and typed[0] in COMMANDS:
        return int(importlib.import_module(COMMANDS[typed[0]][0]).main(typed[1:]))
    try:
        given = flags().parse_intermixed_args(typed)
    except ValueError as error:
        return fail(error)
    if given.version:
        print(f"cl_runner {cl_runner.__version__}")
        return 0
    if given.help:
        try:
            print(help_text(given.config_dir))
        except ValueError as error:
            return fail(error)
        return 0
    return _request(given)


def _request(given: argparse.Namespace) -> int:
    from cl_runner.compose import compose
    from cl_runner.groups import GROUPS
    from cl_runner.overrides import COMMAND, check_once, command_line, key_of, nearest, quoted

    overrides, folders = given.overrides, given.config_dir
    passed_on = given.cfg or given.info or given.hydra_help or given.shell_completion
    try:
        if overrides and "=" not in overrides[0] and overrides[0][:1].isalpha():
            if overrides[0] in COMMANDS:
                raise ValueError(_command_first(overrides, folders))
            known = nearest(overrides[0], COMMANDS)
            if known and overrides[0].partition("/")[0] not in GROUPS:
                line = " ".join([COMMAND, known, *map(quoted, overrides[1:])])
                said = f"there is no command {overrides[0]!r}; commands: {', '.join(COMMANDS)}."
                raise ValueError(f"{said}\nNearest: {known!r}. Type: {line}")
        if (given.resolve or given.package) and not given.cfg:
            flag = "--resolve" if given.resolve else "--package"
            raise ValueError(f"{flag} says how --cfg shows a configuration. Type: {COMMAND} --cfg job {flag}")
        if given.shell_completion or given.hydra_help:
            return _hydra(given)
        if given.multirun and passed_on:
            raise ValueError("--cfg and --info show one configuration: leave -m and the lists of values out")
        of_hydra = [o for o in overrides if key_of(o).startswith("hydra") and key_of(o) != "hydra.searchpath"]
        if of_hydra and not given.multirun and not passed_on:
            line = command_line([o for o in overrides if o not in of_hydra], folders)
            raise ValueError(
                f"{of_hydra[0]} is read by Hydra's multiruns alone; where a run writes is root=DIR. Type: {line} "
                f"(or {command_line(overrides, folders, multirun=True)})"
            )
        check_once(overrides, folders, given.multirun)
        if given.multirun:
            from cl_runner.sweeps.multirun import run_sweep

            return run_sweep(overrides, folders, lambda sweep: _hydra(given, sweep))
        request = compose(overrides, folders)
        for line in request.replaced:
            print(line, file=sys.stderr, flush=True)
        if passed_on:
            return _hydra(given)
        if request.config.hardware.slurm is not None:
            raise ValueError(f"a run on SLURM is submitted. Type: {request.command}")
    except ValueError as error:
        return fail(error)
    from cl_runner.job import run_request

    return run_request(request)


def _command_first(words: Sequence[str], folders: Sequence[Path]) -> str:
    """What to say of a command behind a flag; only some commands take folders of configuration files."""
    from cl_runner.overrides import COMMAND, quoted

    takes = folders if words[0] in ("plan", "methods", "orders") else ()
    flags = [word for folder in takes for word in ("--config-dir", quoted(str(folder)))]
    line = " ".join([COMMAND, words[0], *flags, *map(quoted, words[1:])])
    return f"the command {words[0]} is the first word. Type: {line}"


def _hydra(given: argparse.Namespace, sweep: str = "") -> int:
    """Hand over to Hydra: multirun with its launchers, --cfg, --info, completion."""
    import hydra

    from cl_runner.compose import version_base
    from cl_runner.groups import START, search_path
    from cl_runner.job import job
    from cl_runner.overrides import for_sweeper, named

    passed = ["-m"] * given.multirun + ["--resolve"] * given.resolve
    passed += ["--hydra-help"] * given.hydra_help + ["--shell-completion"] * given.shell_completion
    for name in ("cfg", "info", "package"):
        if getattr(given, name) is not None:
            passed += [f"--{name}", getattr(given, name)]
    where = [f"hydra.sweep.dir=${{root}}/sweeps/{sweep}"] if sweep else []
    overrides = for_sweeper(named(given.overrides, given.config_dir)) if given.multirun else given.overrides
    first, others = search_path(given.config_dir)
    sys.argv = ["cl_runner", *passed, *overrides, *others, *where]
    hydra.main(config_path=first, config_name=START, **version_base())(job)()
    return 0


if __name__ == "__main__":
    sys.exit(main())
