"""The processes that compute one run, as torchrun, accelerate launch or srun start them.

Every process goes through the same run and knows the same of it. Passes are dealt out by their number (`mine`); what
they give is added up (`add`) or gathered (`gathered`), which leaves the same bits in every process. What is written is
written by the first one (`once`). Where one process ends, the others cannot go on (`Elsewhere`).

But for shards.py the only file that imports torch.distributed; nothing is pickled: what is not a tensor goes as JSON.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from cl_runner.own_cards import cards_of_their_own

if TYPE_CHECKING:
    from torch import Tensor, nn

Given = ParamSpec("Given")
Result = TypeVar("Result")

#: A process that says nothing for so long is taken for lost. One that died is noticed at once.
TIMEOUT = timedelta(minutes=30)
#: Tensors are sent together in pieces of about so many bytes.
BUCKET = 32 << 20
#: Seconds that the other processes give the first one to say what is wrong.
PATIENCE = 0.5
#: The port of the first of several processes that srun started, plus a part of the job's number.
FIRST_PORT = 20_000


class Elsewhere(Exception):
    """Another process of the run has ended.

    Attributes:
        kind: the name of the class of what it raised; empty if it could not say so.
    """

    def __init__(self, kind: str = ""):
        super().__init__("another process of this run has ended")
        self.kind = kind

    @property
    def interrupted(self) -> bool:
        """It was asked to stop, and the run is saved."""
        return self.kind in ("Interrupted", "KeyboardInterrupt", "_Asked")


@dataclass
class _Here:
    """This process among those of the run.

    Attributes:
        local: its number on its machine.
        beside: how many there are on its machine, itself among them.
        apart: each of them has a GPU of its own.
        joined: all of them can be reached.
        alone: the first one computes by itself what the others wait for.
        sent: bytes of tensors that it gave to be added up.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    beside: int = 1
    apart: bool = False
    joined: bool = False
    alone: bool = False
    sent: int = 0
    store: Any = None


_here = _Here()


def launched(environment: Mapping[str, str]) -> tuple[int, int, int]:
    """(number of this process, number of processes, its number on its machine), as a launcher tells them.

    Raises:
        ValueError: there are several, and it does not tell which one this is.
    """
    if int(environment.get("WORLD_SIZE", "1")) > 1:
        if "RANK" not in environment:
            raise ValueError(
                f"WORLD_SIZE={environment['WORLD_SIZE']}, but RANK is not set. Start several processes of one run by "
                "torchrun --nproc-per-node=N -m cl_runner ..., or one by: WORLD_SIZE=1 python -m cl_runner ..."
            )
        return int(environment["RANK"]), int(environment["WORLD_SIZE"]), int(environment.get("LOCAL_RANK", "0"))
    # SLURM_NTASKS is set for a shell within an allocation as well, from which one plain process may be started.
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        of = {name: int(environment[f"SLURM_{name}"]) for name in ("PROCID", "STEP_NUM_TASKS", "LOCALID")}
        return of["PROCID"], of["STEP_NUM_TASKS"], of["LOCALID"]
    return 0, 1, 0


def _address(environment: Mapping[str, str]) -> tuple[str, int]:
    """Where the first process is met."""
    if "MASTER_ADDR" in environment and "MASTER_PORT" in environment:
        return environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    nodes = environment.get("SLURM_STEP_NODELIST", "localhost")
    if "[" in nodes or "," in nodes:
        told = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
        nodes = told.stdout.split()[0]
    return nodes, FIRST_PORT + int(environment.get("SLURM_JOB_ID", "0")) % FIRST_PORT


def join() -> None:
    """Meet the other processes of this run, if there are some; once a process.

    Raises:
        ValueError: the launcher does not say which process this is.
    """
    rank, size, local = launched(os.environ)
    if size == 1:
        return
    if rank:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # one of them speaks, to the end
    if _here.store is not None:
        assert _here.joined, "a run that has lost a process cannot be followed by another one"
        return
    from torch import distributed

    host, port = _address(os.environ)
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's own process is met
    store = distributed.TCPStore(host, port, size, is_master=rank == 0 and not served, timeout=TIMEOUT)
    place = distributed.PrefixStore(f"cl_runner/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("SLURM_NTASKS_PER_NODE", str(size))))
    apart = cards_of_their_own(place, rank, size, local)
    backend = "cpu:gloo,cuda:nccl" if apart and distributed.is_nccl_available() else "gloo"
    distributed.init_process_group(backend, store=place, rank=rank, world_size=size, timeout=TIMEOUT)
    _here.rank, _here.size, _here.local, _here.joined, _here.store = rank, size, local, True, place
    _here.beside, _here.apart = here, apart


def apart() -> bool:
    """Whether each process has a GPU of its own."""
    return _here.apart


def part() -> None:
    """This process ends by itself, and asks the others for nothing any more; they notice when it is gone."""
    _here.joined = False


def rank() -> int:
    """The number of this process in the run."""
    return _here.rank


def size() -> int:
    """How many processes compute the run."""
    return _here.size


def local() -> int:
    """The number of this process on its machine."""
    return _here.local


def beside() -> int:
    """How many processes of the run are on this one's machine, itself among them."""
    return _here.beside


def first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return _here.rank == 0


def sent_bytes() -> int:
    """Of tensors that this process has given to be added up, or brought together."""
    return _here.sent


def count_sent(size: int) -> None:
    """So many bytes more were sent, by what this file does not do itself."""
    _here.sent += size


def mine(number: int) -> bool:
    """Whether what has this number is done by this process: in turns."""
    return _here.alone or number % _here.size == _here.rank


def round_ends(number: int) -> bool:
    """Whether every process has had its turn after this one."""
    return _here.alone or (number + 1) % _here.size == 0


def speaks() -> bool:
    """Whether this process is the first one to say why the run ends; the others' reasons follow from it."""
    if _here.store is None:
        return True
    if not first():
        time.sleep(PATIENCE)  # what all of them find wrong is the first one's to say
    try:
        return bool(_here.store.add("ended", 1) == 1)
    except Exception:  # who served the store is gone
        return first()


def ended(error: Elsewhere) -> int:
    """Say, unless another one has, that another process of the run has ended; this one's exit status."""
    if error.interrupted:
        return 75
    say("another process of this run ended without a word, as if it was killed.")
    return 1


def launcher() -> str:
    """How the command that goes on has to be started, behind it; nothing for one process."""
    return "" if size() == 1 else f" (as {size()} processes, by the launcher that started this one)"


def say(message: object) -> bool:
    """Say why the run ends, unless another process has; whether this one did."""
    spoke = speaks()
    if spoke:
        own = "" if first() else f"process {_here.rank + 1} of {_here.size}: "
        print(f"cl_runner: {own}{message}", file=sys.stderr)
    return spoke


# together
def _together() -> bool:
    return _here.joined and not _here.alone


@contextmanager
def _reaching() -> Iterator[None]:
    """Make one exception of a process that cannot be reached."""
    try:
        yield
    except RuntimeError as error:
        _here.joined = False
        raise Elsewhere from error


@contextmanager
def _computing(alone: bool) -> Iterator[None]:
    before, _here.alone = _here.alone, alone
    try:
        yield
    finally:
        _here.alone = before


def alone() -> AbstractContextManager[None]:
    """Inside, this process computes by itself."""
    return _computing(alone=True)


def together() -> AbstractContextManager[None]:
    """Inside, what this process computes `alone` asks all of them, which wait for that."""
    return _computing(alone=False)


def any_of(flag: bool) -> bool:
    """Whether any process says so."""
    if not _together():
        return flag
    import torch
    from torch import distributed

    said = torch.tensor([int(flag)])
    with _reaching():
        distributed.all_reduce(said, distributed.ReduceOp.MAX)
    return bool(said)


def shared(value: Any) -> Any:
    """What the first process has, as JSON gives it back; the others' own does not count."""
    if not _together():
        return value
    import torch
    from torch import distributed

    data = json.dumps(value).encode() if first() else b""
    length = torch.tensor([len(data)])
    with _reaching():
        distributed.broadcast(length, 0)
        sent = torch.frombuffer(bytearray(data), dtype=torch.uint8) if first() else torch.empty(int(length)).byte()
        distributed.broadcast(sent, 0)
    return value if first() else json.loads(sent.numpy().tobytes())


def gathered(value: Any) -> list[Any]:
    """What every process has, in their order, as JSON gives it back."""
    if not _together():
        return [value]
    import torch
    from torch import distributed

    data = json.dumps(value).encode()
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(_here.size)]
    with _reaching():
        distributed.all_gather(lengths, torch.tensor([len(data)]))
        longest = max(int(length) for length in lengths)
        padded = torch.frombuffer(bytearray(data.ljust(longest)), dtype=torch.uint8)
        rows = [torch.empty(longest, dtype=torch.uint8) for _ in range(_here.size)]
        distributed.all_gather(rows, padded)
    return [json.loads(row[: int(length)].numpy().tobytes()) for row, length in zip(rows, lengths, strict=True)]


def once(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Of a function that writes, or whose result only one process needs: the first one calls it, and the others wait.

    Its result is what all of them get: of JSON. What it raises ends the others as well (`Elsewhere`).
    """

    @functools.wraps(function)
    def call(*given: Given.args, **named: Given.kwargs) -> Result:
        if not _together():
            return function(*given, **named) if first() else None  # type: ignore[return-value]  # the run ends
        if not first():
            told = shared(None)
            if "raised" in told:
                raise Elsewhere(told["raised"])
            return told["result"]
        try:
            with alone():
                result = function(*given, **named)
        except BaseException as error:
            with suppress(Elsewhere):
                shared({"raised": type(error).__name__})
            raise
        shared({"result": result})
        return result

    return call


def send(tensor: Tensor) -> None:
    """A contiguous tensor becomes, in place, what the first process has in it: the same bits."""
    if not _together() or not tensor.numel():
        return
    import torch
    from torch import distributed

    with _reaching():
        distributed.broadcast(tensor.detach().reshape(-1).view(torch.uint8), 0)


def add(tensors: Iterable[Tensor]) -> None:
    """Each tensor becomes, in place, its sum over the processes: the same bits in all of them."""
    if not _together():
        return
    bucket: list[Tensor] = []
    held = 0
    for tensor in tensors:
        full = held + tensor.nbytes > BUCKET
        if bucket and (full or (tensor.dtype, tensor.device) != (bucket[0].dtype, bucket[0].device)):
            _add_together(bucket)
            bucket, held = [], 0
        bucket.append(tensor)
        held += tensor.nbytes
    if bucket:
        _add_together(bucket)


def _add_together(bucket: Sequence[Tensor]) -> None:
    import torch
    from torch import distributed

    joined = torch.cat([tensor.detach().reshape(-1) for tensor in bucket])
    _here.sent += joined.nbytes
    with _reaching():
        distributed.all_reduce(joined)
    for tensor, part in zip(bucket, joined.split([tensor.numel() for tensor in bucket]), strict=True):
        tensor.detach().copy_(part.view(tensor.shape))


def add_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """The gradients of parameters become their sums over the processes; one that no process has stays None."""
    if not _together():
        return
    import torch
    from torch import distributed

    there = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.uint8)
    with _reaching():
        distributed.all_reduce(there, distributed.ReduceOp.MAX)
    held = [parameter for parameter, some in zip(parameters, there.tolist(), strict=True) if some]
    for parameter in held:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    add(parameter.grad for parameter in held if parameter.grad is not None)
