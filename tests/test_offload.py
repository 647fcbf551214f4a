"""What the optimizer holds of weights that train whole, in main memory: hardware.offload=optimizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import run_command, tiny, tiny_config
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cl_runner.compose import compose
from cl_runner.identity import config_hash
from cl_runner.masters import Masters
from cl_runner.methods.penalty import pull_back
from cl_runner.optimizer import build_optimizer, step
from cl_runner.planning.command import planned_run
from cl_runner.planning.fitting import fitted
from cl_runner.planning.memory import with_options

OFFLOAD = "hardware.offload=optimizer"
CPU, GPU = torch.device("cpu"), torch.device("meta")


def weights(dtype: torch.dtype, device: torch.device) -> dict[str, nn.Parameter]:
    """Of two layers."""
    return {
        name: nn.Parameter(torch.ones(shape, dtype=dtype, device=device))
        for name, shape in (("first.weight", (4, 6)), ("second.weight", (2, 4)), ("second.bias", (2,)))
    }


def loss(held: dict[str, nn.Parameter], batch: torch.Tensor) -> torch.Tensor:
    hidden = torch.relu(batch @ held["first.weight"].T)
    return (hidden @ held["second.weight"].T + held["second.bias"]).float().sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor"])
def test_a_step_of_a_gpu_s_weights_is_computed_in_main_memory(dtype: torch.dtype, name: str, tmp_path: Path) -> None:
    """Tensors without content know where they lie, and refuse work between the two; torch's meta stands for a GPU."""
    training = tiny_config(tmp_path).training.model_copy(update={"optimizer": name})
    with FakeTensorMode():
        own, batch = weights(dtype, GPU), torch.ones(3, 6, dtype=dtype, device=GPU)
        masters = Masters(own, device=CPU)
        assert {p.device.type for p in masters.parameters.values()} == {"cpu"}
        optimizer = build_optimizer(masters.parameters, training, 1e-3)
        for _ in range(2):
            for _ in range(2):  # two passes of a batch: their gradients add up
                loss(own, batch).backward()
                assert all(p.grad is None for p in own.values()), "the device keeps no gradient"
            assert {p.grad.device.type for p in masters.parameters.values() if p.grad is not None} == {"cpu"}
            nn.utils.clip_grad_norm_(masters.parameters.values(), float("inf"))
            step(optimizer, 1.0)
            masters.write_through()
        held = [v for values in optimizer.state.values() for v in values.values() if isinstance(v, torch.Tensor)]
        assert held or name == "sgd"
        assert {tensor.device.type for tensor in held} <= {"cpu"}
        assert {p.device.type for p in own.values()} == {"meta"}


def test_a_penalty_goes_where_its_gradient_is(tmp_path: Path) -> None:
    class Between:
        """As much of a learner as a penalty asks for."""

        shards = None

        def __init__(self, own: dict[str, nn.Parameter]):
            self.trained = Masters(own, device=CPU).parameters
            self.before = {name: p.detach().to(CPU) for name, p in own.items()}

        def rows_of(self, name: str) -> bool:
            return False

    with FakeTensorMode():
        own = weights(torch.bfloat16, GPU)
        learner = Between(own)
        importance = {name: torch.ones(p.shape, device=GPU) for name, p in own.items()}
        with pytest.raises(Exception, match="local_scalar"):  # its value is asked for at the end
            pull_back(learner, 0.1, importance)  # type: ignore[arg-type]
        first = next(iter(learner.trained.values()))
        assert first.grad is not None and first.grad.device == CPU


def test_on_one_device_nothing_changes() -> None:
    """fp32 weights are held themselves, bf16 ones have copies."""
    full = weights(torch.float32, CPU)
    held = Masters(full, device=CPU).parameters
    assert all(held[name] is full[name] for name in full)
    held = Masters(weights(torch.bfloat16, CPU), device=CPU).parameters
    assert {p.dtype for p in held.values()} == {torch.float32}


def test_the_plan_of_a_gpu(tmp_path: Path) -> None:
    """A last resort, which needs main memory, and no other run."""
    line = ["method=seq_ft", "backbone=tiny_llama", "task_order=reviews", "hardware=gpu"]
    request = compose(tiny(tmp_path, *line, "backbone.dtype=bfloat16", "hardware.memory_gb=80"))
    planner, s, _ = planned_run(request)
    assert not s.offload and s.offloads and planner.in_main_memory(s) == 0
    options, _ = fitted(planner, s, 1, (), passes=True)
    assert options["hardware.offload"] == "optimizer"
    there = with_options(s, {"hardware.offload": "optimizer"})
    entries = planner.architecture.trained(s, s.tasks[-1])
    assert planner.in_main_memory(there) == (2 + 4 + 4 + 8) * entries  # before, copies, gradients, AdamW's two
    saved = planner.peak(s, "train incremental") - planner.peak(there, "train incremental")
    assert saved >= (2 + 4 + 8) * entries
    assert "hardware.offload" not in fitted(planner, s, 1, {"hardware.offload"}, True)[0]
    assert "hardware.offload" not in fitted(planner, s, 1, (), True, main_memory=entries)[0]
    sparse = compose(tiny(tmp_path, "method=piece_s", *line[1:]))
    assert "hardware.offload" not in fitted(*planned_run(sparse)[:2], 1, (), True)[0], "its values are few"
    assert len({config_hash(compose([*line, *more]).resolved) for more in ((), (OFFLOAD,))}) == 1


def test_methods_that_work_on_gradients_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(tiny(tmp_path, "method=gem", OFFLOAD)) == 2
    assert "gem works on gradients where the weights are. Type: hardware.offload=none" in capsys.readouterr().err


def test_state_of_training_is_read_into_main_memory(tmp_path: Path) -> None:
    from cl_runner import checkpoint

    tree = {"training": {"held": {"w": torch.ones(2)}}, "method": {"w": torch.zeros(2)}}
    checkpoint.save(tmp_path, tree)
    found = checkpoint.load(tmp_path, "meta")
    assert found is not None
    assert found["training"]["held"]["w"].device == CPU
    assert found["method"]["w"].device.type == "meta"
