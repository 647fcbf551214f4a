"""Seconds and peak memory of each phase of a run."""

from __future__ import annotations

import ctypes
import resource
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

#: PE's two phases: offline happens between tasks with the old data, online when the new task's data are there. Answers
#: to old prompts (OPR) are offline. Scores
#: of the new task's own data (PIECE) are online as well, and so are queries and keys of its texts (SLM).
OFFLINE = ("importance", "selection", "answers")
ONLINE = ("prepare", "queries", "keys", "train", "select")


class Clock:
    """Phases nest, and an inner phase's time is not counted in the outer one.

    `tasks[i]` holds the seconds of each phase while task i was current; -1 is before the first task.
    """

    def __init__(self) -> None:
        self.current = -1
        self.tasks: dict[int, dict[str, float]] = {}
        self.peak_memory: dict[str, float] = {}
        self.failed: str | None = None  # the innermost phase that an error ended
        self._stack: list[str] = []
        self._since = time.perf_counter()

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._stack:
            seconds = self.tasks.setdefault(self.current, {})
            seconds[self._stack[-1]] = seconds.get(self._stack[-1], 0.0) + now - self._since
        self._since = now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside as `name`."""
        self._charge()
        if not self._stack:
            _reset_peak()
        self._stack.append(name)
        try:
            yield
        except Exception:
            self.failed = self.failed or name
            raise
        finally:
            self._charge()
            self._stack.pop()
            self.peak_memory[name] = max(self.peak_memory.get(name, 0.0), _peak_mebibytes())

    def spent(self, phases: Collection[str]) -> float:
        """Seconds of these phases in the current task, up to now."""
        self._charge()
        return sum(value for name, value in self.tasks.get(self.current, {}).items() if name in phases)

    def totals(self) -> dict[str, float]:
        """Seconds of each phase over all tasks."""
        total: dict[str, float] = {}
        for seconds in self.tasks.values():
            for name, value in seconds.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def state_dict(self) -> dict[str, dict[str, dict[str, float]]]:
        """For resume: a run's seconds are the sum over its sessions."""
        return {
            "tasks": {str(i): dict(s) for i, s in self.tasks.items()},
            "peak_memory": {"": dict(self.peak_memory)},
        }

    def load_state_dict(self, state: dict[str, dict[str, dict[str, float]]]) -> None:
        """The counterpart of `state_dict`; what this session measured so far is added."""
        for key, seconds in state["tasks"].items():
            mine = self.tasks.setdefault(int(key), {})
            for name, value in seconds.items():
                mine[name] = mine.get(name, 0.0) + value
        for name, value in state["peak_memory"][""].items():
            self.peak_memory[name] = max(self.peak_memory.get(name, 0.0), value)


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        # glibc keeps what was freed, which would count in the next phase's peak; other C libraries have no such call.
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)
        # Linux lets a process reset its own high-water mark; elsewhere the peak is that of the run so far.
        with suppress(OSError):  # not in every sandbox
            Path("/proc/self/clear_refs").write_text("5")


def _peak_mebibytes() -> float:
    """Peak of allocated GPU memory, or of the process's resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else []:
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024
