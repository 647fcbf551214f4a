"""The command `orders`: the balanced orders of a benchmark's tasks, and the line that runs them with several seeds."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from cl_runner.arguments import Parser
from cl_runner.compose import compose
from cl_runner.overrides import COMMAND, command_line, jobs_of, key_of
from cl_runner.plain import plain, plain_lines
from cl_runner.statistics.orders import arrangement, balanced_count
from cl_runner.statistics.paired import LEVEL, smallest_p


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"{COMMAND} orders",
        description="Balanced orders of a benchmark's tasks: every task stands as often at every place, and follows "
        "every other one as often (Williams 1949). task_order.fixed=1 leaves the first task where it is.",
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="*", metavar="GROUP=OPTION | KEY=VALUE", help="as of the runs")
    parser.add_argument("--seeds", default="0,1,2", help="of the line that is printed")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("-cd", "--config-dir", action="append", default=[], type=Path, metavar="DIR")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command; 0, or 2 after one message for a wrong request."""
    try:
        asked = _parser().parse_intermixed_args(list(arguments))
        print(_told(asked.overrides, asked.config_dir, _seeds(asked.seeds), asked.json))
    except ValueError as error:
        print(f"cl_runner: {plain_lines(error)}", file=sys.stderr)
        return 2
    return 0


def _seeds(text: str) -> list[int]:
    seeds = text.split(",")
    if not all(seed.strip().isdecimal() for seed in seeds):
        raise ValueError(f"--seeds {text}: whole numbers by commas, such as --seeds 0,1,2")
    numbers = [int(seed) for seed in seeds]
    twice = next((seed for seed in numbers if numbers.count(seed) > 1), None)
    if twice is not None:
        raise ValueError(f"--seeds {text}: {twice} is there twice; each seed is one run")
    return numbers


def _told(overrides: Sequence[str], folders: Sequence[Path], seeds: Sequence[int], as_json: bool) -> str:
    for key in ("task_order.balanced", "seed"):
        typed = next((each for each in overrides if key_of(each) == key), None)
        if typed is not None:
            instead = f"--seeds {typed.partition('=')[2]}" if key == "seed" else "leave it out: all of them are listed"
            raise ValueError(f"{typed}: {instead}")
    jobs = jobs_of(overrides, folders)
    if not jobs:
        raise ValueError("a range or list of these overrides is empty")
    order = compose(jobs[0], folders, sweep="orders").config.task_order
    free = len(order.tasks) - order.fixed
    # What is refused of the last one would be refused of any.
    count = balanced_count(max(free, 1))
    compose([*jobs[0], f"task_order.balanced={count - 1}"], folders, sweep="orders")
    names = [task.name for task in order.tasks]
    orders = [[names[place] for place in arrangement(len(names), number, order.fixed)] for number in range(count)]
    numbers = ",".join(map(str, range(count)))
    line = command_line(
        [*overrides, f"task_order.balanced={numbers}", f"seed={','.join(map(str, seeds))}"], folders, multirun=True
    )
    if as_json:
        return json.dumps({"orders": orders, "fixed": order.fixed, "seeds": list(seeds), "command": line}, indent=1)
    runs = count * len(seeds)
    lines = [f"task_order.balanced={number}: {', '.join(map(plain, tasks))}" for number, tasks in enumerate(orders)]
    moving = "Each task" if not order.fixed else f"Each task after the first {order.fixed}"
    lines.append(f"{moving} is as often at every place, and follows every other one as often.")
    if count > free:
        lines.append(f"The first {free} alone are a Latin square: as often at every place, but not after every other.")
    if not order.fixed and order.base != order.incremental and not all(task.counts for task in order.tasks):
        lines.append(
            "task_order.base and task_order.incremental differ: whichever task comes first has other numbers of "
            "examples. Give both the same, or leave the base task where it is: task_order.fixed=1"
        )
    each = f"{len(seeds)} seed{'s' * (len(seeds) > 1)}"
    lines.append(f"{count} orders x {each} = {runs} runs of a method. {_told_apart(runs)}".rstrip())
    return "\n".join([*lines, f"Type: {line}"])


def _told_apart(runs: int) -> str:
    """How many methods paired tests over so many runs could tell apart, all pairs together."""
    pairs = int(LEVEL / smallest_p(runs))
    methods = (1 + math.isqrt(1 + 8 * pairs)) // 2
    if methods < 2:
        return f"The smallest p of {runs} paired runs is {smallest_p(runs):.3g}: no two methods can be told apart."
    return f"Paired tests over them can tell up to {methods} methods apart." if methods < 100 else ""
