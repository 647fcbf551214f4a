"""Composing and checking the jobs of a multirun: each choice of groups once, against every job by itself.

Aim: a thousand jobs in a minute.

    python scripts/bench/many_jobs.py --threads 1 --repeats 3 --clock processor \\
        --output outputs/published/bench/many_jobs.json
"""

from __future__ import annotations

from harness import arguments, interleaved, keep, ratio, show, spread

from cl_runner.compose import compose
from cl_runner.overrides import jobs_of
from cl_runner.sweeps.jobs import requests_of


def main() -> None:
    """Measure a line of two methods over seeds."""
    given = arguments(__doc__ or "", jobs=40)
    line = ["method=pe,ewc", f"seed=range(0,{given.jobs // 2})"]

    def apart() -> None:
        for job in jobs_of(line):
            compose(job, sweep="")

    seconds = interleaved({"a choice once": lambda: requests_of(line, []), "each job": apart}, given.repeats)
    each = {way: [taken / given.jobs for taken in all_jobs] for way, all_jobs in seconds.items()}
    table = [
        [way, f"{1000 * spread(taken)['median']:.0f} ms", f"{ratio(taken, each['a choice once'])[0]:.1f}"]
        for way, taken in each.items()
    ]
    show("a job of a multirun", ("", "time", "by a choice once"), table)
    keep(given.output, {way: spread(taken) for way, taken in each.items()})


if __name__ == "__main__":
    main()
