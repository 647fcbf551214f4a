"""What to do after a run failed, by the kind of what went wrong. A run computes the same each time it is typed.

So the same command helps where the cause lies outside of it, as a full disk does, and after the cause was mended.
"""

from __future__ import annotations

from pathlib import Path

from cl_runner.compose import Request
from cl_runner.full_disk import FullDiskError, is_full, room

#: Packages whose errors come from the network or from a service.
_SERVICES = ("requests", "urllib3", "httpx", "httpcore", "huggingface_hub", "wandb")


def advice(error: BaseException, request: Request) -> str:
    """What to type, or to mend, after this error ended a run."""
    state = request.folder / "state"
    safe = f"What was learned before is safe in {state}" if (state / "checkpoint.json").is_file() else "Nothing is lost"
    if is_full(error):
        cause = _cause(error)
        path = Path(str(cause.filename)) if cause is not None and cause.filename else request.folder
        needed = f" needs {cause.needed:,} bytes" if isinstance(cause, FullDiskError) else " found none"
        return (
            f"The disk is full: {path}{needed}; {room(path.parent)}. {safe}. Make room there; then the same command "
            f"goes on: {request.command}"
        )
    if isinstance(error, ImportError):
        return (
            f"A package is missing, or is not the right version: {error}. {safe}. Install it; then the same command "
            f"goes on: {request.command}"
        )
    if _comes_from_outside(error):
        return f"{safe}. This may be gone by now; the same command tries again: {request.command}"
    return (
        f"{safe}. The same command would end so again: a run computes the same each time. Mend the cause first; "
        f"after that it goes on: {request.command}"
    )


def _cause(error: BaseException | None) -> OSError | None:
    """The error of the operating system that another one came from."""
    while error is not None and not (isinstance(error, OSError) and error.filename is not None):
        error = error.__cause__ or error.__context__
    return error


def _comes_from_outside(error: BaseException) -> bool:
    """Whether files, network, services or the device caused it, which may do better next time."""
    package = type(error).__module__.partition(".")[0]
    device = type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)
    return isinstance(error, (OSError, MemoryError)) or package in _SERVICES or device
