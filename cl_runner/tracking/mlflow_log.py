"""MLflow by its client, into a SQLite file or a server: no global state, no active run.

A run is found again by a tag that holds its id. Each batch of numbers, which the store writes at once, ends with
`line`, the number of the last line of metrics.jsonl in it: so that a resumed run knows how many are there.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cl_runner.tracking.tracker import INTERRUPTED, Cell, Told, Tracker

#: What MLflow takes at once, and of one value.
_METRICS, _PARAMETERS, _TEXT = 1000, 100, 6000
_ID, _TABLES = "cl_runner.run_id", "cl_runner.tables"
_LINE = "line"
_ENDS = {0: "FINISHED", INTERRUPTED: "KILLED"}


class MlflowLog(Tracker):
    """One run of MLflow.

    Args:
        uri: of the store, such as http://HOST:PORT; None = `mlflow.db` in the folder `store`.
        experiment: which collects the runs; made where there is none.
        store: the folder of a store of our own, which runs below one root share.
    """

    title = "MLflow"

    def __init__(self, told: Told, *, uri: str | None, experiment: str, store: Path):
        self._uri, self._experiment, self._store = uri, experiment, store.absolute()
        self._client: Any = None
        self._id = ""
        self._waiting: list[Any] = []  # metrics that are not sent yet
        super().__init__(told)

    def open(self) -> int:
        # Statistics of use are MLflow's default, and this program uses no network that is not asked for.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # A server that is away is given up within seconds; the default tries for minutes while the run waits.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        uri, place = self._uri, None
        if uri is None:
            self._store.mkdir(parents=True, exist_ok=True)
            uri, place = f"sqlite:///{self._store / 'mlflow.db'}", (self._store / "artifacts").as_uri()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of SQLAlchemy 2.1, about MLflow's own tables
            self._client = MlflowClient(uri)
        experiment = self._experiment_id(place)
        runs = self._client.search_runs([experiment], f"tags.`{_ID}` = '{self.told.run_id}'", max_results=1)
        if runs:
            self._id = runs[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            sent = int(runs[0].data.metrics.get(_LINE, -1)) + 1
            return sent + (_TABLES in runs[0].data.tags)
        told = self.told
        tags = {_ID: told.run_id, "folder": str(told.folder)} | ({"group": told.group} if told.group else {})
        tags |= {name: value for name, _, value in (tag.partition(":") for tag in told.tags)}
        self._id = self._client.create_run(experiment, run_name=told.name, tags=tags).info.run_id
        self._parameters(told.config)
        return 0

    def _experiment_id(self, place: str | None) -> str:
        """The experiment's, made where there is none; its files lie at `place`, None: where the store says."""
        from mlflow.exceptions import MlflowException

        if self._client.get_experiment_by_name(self._experiment) is None:
            with suppress(MlflowException):  # another run of a sweep has made it meanwhile
                self._client.create_experiment(self._experiment, place)
        return str(self._client.get_experiment_by_name(self._experiment).experiment_id)

    def _parameters(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        values = [Param(_name(key), text[:_TEXT]) for key, text in _leaves(config)]
        for first in range(0, len(values), _PARAMETERS):
            self._client.log_batch(self._id, params=values[first : first + _PARAMETERS])

    def point(self, number: int, values: Mapping[str, float]) -> None:
        line = [*((name, value) for name, value in values.items() if name != "step"), (_LINE, number)]
        if len(self._waiting) + len(line) > _METRICS:
            self.settle()
        self._waiting += self._metrics_of(line, int(values["step"]))

    def _metrics_of(self, values: Sequence[tuple[str, float]], step: int) -> list[Any]:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        return [Metric(_name(name), float(value), now, step) for name, value in values]

    def settle(self) -> None:
        for first in range(0, len(self._waiting), _METRICS):
            self._client.log_batch(self._id, metrics=self._waiting[first : first + _METRICS])
        self._waiting = []

    def matrices(
        self,
        number: int,
        columns: Sequence[str],
        tables: Mapping[str, Sequence[Sequence[Cell]]],
        images: Mapping[str, Path],
    ) -> None:
        for name, rows in tables.items():
            content = {"columns": list(columns), "data": [list(row) for row in rows]}
            self._client.log_dict(self._id, content, f"matrix/{name}.json")
        for path in images.values():
            self._client.log_artifact(self._id, str(path), "plots")
        self._client.set_tag(self._id, _TABLES, "true")

    def numbers(self, values: Mapping[str, float | int | str | None]) -> None:
        held = self._client.get_run(self._id).data.metrics
        found = {f"run/{key}": value for key, value in values.items() if isinstance(value, int | float)}
        new = [(key, value) for key, value in found.items() if held.get(_name(key)) != value]
        self._waiting += self._metrics_of(new, 0)
        self.settle()

    def keep(self, kind: str, files: Sequence[Path]) -> None:
        for path in files:
            self._client.log_artifact(self._id, str(path), kind)

    def close(self, exit_code: int) -> None:
        self._client.set_terminated(self._id, _ENDS.get(exit_code, "FAILED"))


def _name(name: str) -> str:
    """A name of letters that MLflow takes, such as `ability/lm_eval/acc_none` for `acc,none`."""
    return re.sub(r"[^\w./ -]", "_", name)[:250]


def _leaves(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The values of nested mappings by their dotted keys; a list is one value."""
    found: list[tuple[str, str]] = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            found += _leaves(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)))
    return found
