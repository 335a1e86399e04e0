"""The processes that train one model together: who does what, and how a module is wrapped for them.

Owns data parallelism and DeepSpeed, through accelerate; knows nothing of what is learnt. One process alone is the
case of a crew of one, and goes the same way.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from components.errors import DataError, EngineError, SettingsError
from components.records import replacing
from components.settings import Optimiser, Runtime

_PATIENCE = timedelta(hours=6)  # what one process does alone, the others wait for
_LATEST = "latest"  # DeepSpeed's own name for the file that names the newest checkpoint


class Crew:
    """The processes that train together, as one of them sees it.

    Raises:
        SettingsError: a DeepSpeed configuration that is no JSON object.
        EngineError: DeepSpeed is asked for and not installed.
    """

    def __init__(self, runtime: Runtime | None = None) -> None:
        self.rank = runtime.rank if runtime else 0
        self.size = runtime.world_size if runtime else 1
        self.config = _configuration(runtime.deepspeed) if runtime and runtime.deepspeed else None
        self._on_cpu = runtime is None or not _has_gpu(runtime.device)
        if self.size > 1 and not self._on_cpu:
            torch.cuda.set_device(self.rank % torch.cuda.device_count())  # before anything is loaded

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def stage(self) -> int | None:
        """DeepSpeed's ZeRO stage; None without DeepSpeed."""
        return None if self.config is None else int(self.config.get("zero_optimization", {}).get("stage", 0))

    def share(self, sizes: Sequence[int]) -> list[int]:
        """Which pieces of work of these sizes are this process's: largest first, each to whoever has least.

        Every process computes the same division. One may be left with nothing.
        """
        loads = [0] * self.size
        mine = []
        for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
            rank = loads.index(min(loads))
            loads[rank] += sizes[i]
            if rank == self.rank:
                mine.append(i)
        return sorted(mine)

    def summed(self, values: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return values

    def most(self, number: int) -> int:
        """The largest number that a process has."""
        if self.size == 1:
            return number
        device = "cpu" if self._on_cpu else torch.device("cuda", torch.cuda.current_device())
        value = torch.tensor(number, device=device)
        torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
        return int(value)

    def gathered(self, content: Any) -> list[Any]:
        """What every process has, in the order of their ranks, for every process."""
        if self.size == 1:
            return [content]
        out = [None] * self.size
        torch.distributed.all_gather_object(out, content)
        return list(out)

    def join(self) -> None:
        """Find the other processes, if there are any, and wait until every one is here."""
        if self.size > 1:
            if not torch.distributed.is_initialized():
                self.start()
            self.wait()

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            torch.distributed.barrier()

    def start(self) -> Any:
        """Join the other processes; returns a fresh Accelerator."""
        _quiet_environment(self)
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import DeepSpeedPlugin, DistributedDataParallelKwargs, InitProcessGroupKwargs

        AcceleratorState._reset_state()  # one Accelerator a model: its DeepSpeed configuration belongs to one alone
        if self.config is None:
            unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # a text needs no eyes
            handlers: list[Any] = [InitProcessGroupKwargs(timeout=_PATIENCE), unused]
            return Accelerator(cpu=self._on_cpu, device_placement=False, kwargs_handlers=handlers)
        # With cpu=True accelerate knows no DeepSpeed, and without a named backend it takes a CPU for a lone process.
        backend = "gloo" if self._on_cpu else "nccl"
        handlers = [InitProcessGroupKwargs(backend=backend, timeout=_PATIENCE)]
        if not torch.distributed.is_initialized():
            import deepspeed

            deepspeed.init_distributed(backend, auto_mpi_discovery=False, timeout=_PATIENCE, verbose=False)
        own = json.loads(json.dumps(self.config))
        plugin = DeepSpeedPlugin(hf_ds_config=own, gradient_accumulation_steps=1, zero3_init_flag=False)
        accelerator = Accelerator(deepspeed_plugin=plugin, device_placement=False, kwargs_handlers=handlers)
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()  # or transformers would load later models in pieces, and save them under other names
        return accelerator

    def prepare(
        self,
        module: torch.nn.Module,
        settings: Optimiser,
        outside: Iterable[torch.nn.Parameter] = (),
    ) -> Prepared:
        """The module with its optimiser, wrapped for these processes.

        Args:
            outside: parameters that the module's forward reads elsewhere than in the forward of the module they belong to.
        """
        return Prepared(self, module, settings, outside)


ALONE = Crew()


class Prepared:
    """A module in training: gradients of its parts are summed over parts and processes, then one step is taken."""

    def __init__(
        self, crew: Crew, module: torch.nn.Module, settings: Optimiser, outside: Iterable[torch.nn.Parameter]
    ) -> None:
        self._crew, self._plain, self._max_grad_norm = crew, module, settings.max_grad_norm
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._masters = list(self._parameters)
        if crew.config is None:  # steps are smaller than half precision can tell: they add up in float32
            halves = (torch.bfloat16, torch.float16)
            self._masters = [torch.nn.Parameter(p.detach().float()) if p.dtype in halves else p for p in self._parameters]
        self._accelerator = crew.start()
        if crew.config is not None:
            self._accelerator.state.deepspeed_plugin.deepspeed_config.update(
                gradient_clipping=settings.max_grad_norm,
                bf16={"enabled": any(p.dtype == torch.bfloat16 for p in self._parameters)},
                zero_allow_untested_optimizer=True,
            )
        optimiser = torch.optim.AdamW(
            self._masters, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
        )
        self.module, self.optimiser = self._accelerator.prepare(module, optimiser)
        if crew.stage == 3:
            from deepspeed import zero

            for parameter in outside:
                zero.register_external_parameter(module, parameter)

    def learn(self, part: Any, *, is_last: bool) -> Tensor:
        """Forward and backward of one part; returns what the module said, detached.

        Of a module that says several numbers the first is its loss. The parts' losses, over all processes, add up to the
        step's; wrappers average gradients over processes, hence the factor.
        """
        if self._crew.config is not None:
            said: Tensor = self.module(part)
            self.module.set_gradient_accumulation_boundary(is_last)
            self.module.backward(said.reshape(-1)[0] * self._crew.size)
            if not is_last:
                self.module.step()  # counts the part; parameters move with the last one
            return said.detach()
        if is_last:
            said = self.module(part)
            self._accelerator.backward(said.reshape(-1)[0] * self._crew.size)
        else:
            with self._accelerator.no_sync(self.module):
                said = self.module(part)
                self._accelerator.backward(said.reshape(-1)[0] * self._crew.size)
        return said.detach()

    def step(self) -> None:
        """Clip the gradient, move the parameters, forget the gradient."""
        if self._crew.config is not None:
            self.module.step()
            return
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            gradient = parameter.grad
            parameter.grad = None
            # What took no part has a gradient of 0: so DeepSpeed sees it, and so is it everywhere.
            master.grad = torch.zeros_like(master) if gradient is None else gradient.to(master.dtype)
        torch.nn.utils.clip_grad_norm_(self._masters, self._max_grad_norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self._follow()

    def set_rate(self, rate: float) -> None:
        """Let the next steps be taken at this learning rate."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    @torch.no_grad()
    def _follow(self) -> None:
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            if parameter is not master:
                parameter.copy_(master)

    # --- checkpoints of unfinished work ------------------------------------------------------------------------

    def save(self, path: Path, state: dict[str, Any]) -> None:
        """Keep the unfinished work at `path`, whole or not at all."""
        crew = self._crew
        if crew.config is not None:
            tag = f"step-{state['step']}"
            self.module.save_checkpoint(str(path), tag=tag, client_state={"stepforge": state})
            crew.wait()
            if crew.is_first:
                for old in path.glob("step-*"):
                    if old.name != tag:
                        shutil.rmtree(old, ignore_errors=True)
        elif crew.is_first:
            pairs = zip(self._parameters, self._masters, strict=True)
            whole = {
                **state,
                "module": self._plain.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "masters": [master.detach() for parameter, master in pairs if parameter is not master],
            }
            with replacing(path) as part:
                torch.save(whole, part)
        crew.wait()

    def load(self, path: Path) -> dict[str, Any] | None:
        """Go on from the work at `path`; returns the state that was saved with it, None if there is none.

        Raises:
            DataError: it cannot be read.
        """
        if not (path / _LATEST if self._crew.config is not None else path).exists():
            return None
        try:
            if self._crew.config is not None:
                _, kept = self.module.load_checkpoint(str(path))
                return dict(kept["stepforge"])
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            self._plain.load_state_dict(state.pop("module"))
            self.optimiser.load_state_dict(state.pop("optimiser"))
            pairs = zip(self._parameters, self._masters, strict=True)
            with torch.no_grad():
                for master, kept in zip([m for p, m in pairs if p is not m], state.pop("masters"), strict=True):
                    master.copy_(kept)
        except (RuntimeError, EOFError, KeyError, OSError, TypeError, ValueError, UnpicklingError) as error:
            what = f"unfinished work cannot be read: {error}"
            raise DataError(str(path), what, "delete it to start from the beginning") from error
        return state

    # --- whole weights -----------------------------------------------------------------------------------------

    def whole(self) -> dict[str, Tensor]:
        """The parameters and buffers on the CPU, on the first process; elsewhere nothing. Every process has to ask."""
        if self._crew.stage != 3:
            state = self._plain.state_dict() if self._crew.is_first else {}
            return {name: value.detach().cpu().clone() for name, value in state.items()}
        from deepspeed import zero

        out = dict(self._plain.state_dict())  # for its buffers: the parameters are in pieces
        for name, parameter in self._plain.named_parameters(remove_duplicate=False):
            with zero.GatheredParameters([parameter]):
                out[name] = parameter.data.detach().cpu().clone() if self._crew.is_first else parameter.data
        return {name: value.detach().cpu() for name, value in out.items()} if self._crew.is_first else {}

    def finish(self) -> None:
        """Unwrap: the module is again what it was before, with the weights it has learnt, whole on every process."""
        if self._crew.config is None:
            self.optimiser = self.module = None
            self._accelerator.free_memory()
            return
        from deepspeed import zero

        fresh: dict[int, torch.nn.Parameter] = {}
        for parameter in self._plain.parameters():  # tied parameters come once
            if self._crew.stage == 3:
                with zero.GatheredParameters([parameter]):
                    value = parameter.data.detach().clone()
            else:
                value = parameter.data.detach().clone()
            fresh[id(parameter)] = torch.nn.Parameter(value, requires_grad=parameter.requires_grad)
        engine = self.module
        self.optimiser = self.module = None
        self._accelerator.free_memory()
        engine.destroy()
        for inner in self._plain.modules():  # the old parameters carry hooks that call the old engine
            inner._parameters = {name: p if p is None else fresh[id(p)] for name, p in inner._parameters.items()}


def _configuration(path: Path) -> dict[str, Any]:
    from importlib.util import find_spec

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SettingsError(str(path), f"is no JSON: {error}", "see infra/deepspeed/zero2.json") from error
    if not isinstance(content, dict) or not isinstance(content.get("zero_optimization", {}), dict):
        raise SettingsError(str(path), "is no DeepSpeed configuration", "see infra/deepspeed/zero2.json")
    if "optimizer" in content or "scheduler" in content:
        what = "holds an optimizer or a scheduler: what is learnt is said by params.yaml alone"
        raise SettingsError(str(path), what, "remove it")
    if find_spec("deepspeed") is None:
        raise EngineError(str(path), "DeepSpeed is not installed here", "make setup-deepspeed, or unset STEPFORGE_DEEPSPEED")
    return {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, **content}


def _quiet_environment(crew: Crew) -> None:
    """What accelerate and DeepSpeed read from the environment, where no launcher has set it."""
    if crew.config is None:
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
        return
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    if crew._on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if "RANK" not in os.environ:
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
        for name, value in alone.items():
            os.environ.setdefault(name, value)


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _has_gpu(device: str) -> bool:
    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
