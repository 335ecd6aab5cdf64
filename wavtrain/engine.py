"""The processes and devices a run is on, how model and optimizer are spread over them, and how the C library treats its memory.

DDP is accelerate's. FSDP2 is torch's `fully_shard`, as accelerate asks every model for its word embeddings first. DeepSpeed is
driven by hand, as accelerate steps inside the backward pass. A checkpoint holds whole tensors in the files that accelerate
writes, so a run may go on with another engine.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, broadcast_object_list, patch_environment
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as trees
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from wavtrain import InputError
from wavtrain.optimizers import OptimizerOptions, adamw
from wavtrain.zero import gathered_moments, is_zero, load_into_zero, refusals_of_zero, spread_by_zero

Found = TypeVar("Found")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc
ENGINES = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)
FSDP, DEEPSPEED, MEGATRON = (f"ACCELERATE_USE_{name}" for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"))  # from launchers
NOT_WITH_SHARDS = {"torch_compile": "was not tried with FSDP2", "adapter_language": "its file needs whole weights"}
WEIGHTS, MOMENTS = "model.safetensors", "optimizer.bin"


def accelerator_for(mixed_precision: str | None, **flags: Any) -> Accelerator:
    """As launched; refuses what would fail later, or do nothing. `flags` are those that do not go with every engine."""
    disable_progress_bar()  # of transformers, which draws one for each file it saves
    if _is_on(MEGATRON):
        raise InputError("Megatron-LM is not supported, as it clips, skips and counts updates in its own way: launch with "
                         "configs/accelerate/ddp_one_node.yaml, or another config there")
    can_accelerate = torch.accelerator.is_available() and not torch.backends.mps.is_available()  # which has no float64
    views = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # no second copy of the gradients beside DDP's
    with patch_environment(**{DEEPSPEED: "false", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"}):  # it would divide too
        accelerator = Accelerator(cpu=not can_accelerate, mixed_precision=mixed_precision, kwargs_handlers=[views])
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "fp16":
        raise InputError("--mixed_precision fp16 needs a GPU, on a CPU it would do nothing: give bf16 or no")
    if accelerator.distributed_type not in ENGINES:
        raise InputError(f"{accelerator.distributed_type.value} is not supported: launch with a config of configs/accelerate/")
    if is_sharded(accelerator):
        refusals = refusals_of_zero if _is_on(DEEPSPEED) else _refusals_of_fsdp
        for name, (is_asked, remedy) in refusals(accelerator.mixed_precision, flags).items():
            if is_asked:
                raise InputError(f"{name}: {remedy}")
    if accelerator.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, which accelerate imports if it is there, says so otherwise
        keep_freed_memory()
    return accelerator


def is_sharded(accelerator: Accelerator) -> bool:
    """As launched, by FSDP2 or DeepSpeed. accelerate itself shards on GPUs only."""
    return accelerator.num_processes > 1 and (_is_on(FSDP) or _is_on(DEEPSPEED))


def _is_on(variable: str, unless_said: str = "false") -> bool:
    """What a launcher's config says comes as a variable."""
    return os.environ.get(variable, unless_said).lower() in ("1", "true", "yes", "on")


def _refusals_of_fsdp(mixed_precision: str, flags: dict[str, Any]) -> dict[str, tuple[bool, str]]:
    """What cannot be had: whether it is asked for, and the remedy."""
    return {
        "fsdp_version": (os.environ.get("FSDP_VERSION") != "2", "only FSDP2 is supported: give 2"),
        "fsdp_offload_params": (_is_on("FSDP_OFFLOAD_PARAMS"), "is not supported: give false"),
        "fsdp_activation_checkpointing": (_is_on("FSDP_ACTIVATION_CHECKPOINTING"), "give false, and --gradient_checkpointing"),
        "fsdp_cpu_ram_efficient_loading": (_is_on("FSDP_CPU_RAM_EFFICIENT_LOADING"), "every process reads all: give false"),
        "--mixed_precision fp16": (mixed_precision == "fp16", "its scaler knows nothing of FSDP2's parts: give bf16 or no"),
        **{f"--{flag}": (flags.get(flag), f"{why}: leave it out, or launch with DDP") for flag, why in NOT_WITH_SHARDS.items()}}


def spread(
    accelerator: Accelerator, model: PreTrainedModel, options: OptimizerOptions
) -> tuple[nn.Module, AcceleratedOptimizer]:
    """The model as this process trains it, and its optimizer. FSDP2 shards each layer, and all the rest together."""
    if not is_sharded(accelerator):
        return accelerator.prepare(model, adamw(model, options))
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise InputError(f"--model_name_or_path {model.config.name_or_path}: has batch norms, whose running means FSDP2 "
                         "and DeepSpeed would leave different in every process: launch with DDP")
    model.to(accelerator.device)
    if accelerator.mixed_precision == "bf16":  # float32 weights and gradients travel, as with DDP
        model.forward = torch.autocast(accelerator.device.type, torch.bfloat16)(model.forward)
    if _is_on(DEEPSPEED):
        engine, optimizer = spread_by_zero(model, adamw(model, options))
        return engine, accelerator.prepare_optimizer(optimizer, device_placement=False)
    for layer in model.base_model.encoder.layers:
        fully_shard(layer, reshard_after_forward=_is_on("FSDP_RESHARD_AFTER_FORWARD", "true"))
    fully_shard(model)
    return model, accelerator.prepare_optimizer(adamw(model, options))


def gathered(values: dict[str, Any], keeps: bool) -> dict[str, Any]:
    """The same with whole tensors on the CPU where processes have parts, in those that keep them. Every process calls this."""
    def whole(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        value = value.full_tensor()
        return value.cpu() if keeps else None

    return trees.tree_map(whole, values)


def save_state(accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, folder: str) -> None:
    """Weights, moments and what accelerate adds, into a folder. Every process calls this."""
    keeps = accelerator.is_main_process
    if is_zero(model):
        weights, moments = model.module.state_dict(), gathered_moments(model, keeps)
    elif isinstance(model, FSDPModule):
        weights, moments = (gathered(each.state_dict(), keeps) for each in (model, optimizer))
    else:
        accelerator.save_state(folder)
        return
    if keeps:
        save_file(weights, os.path.join(folder, WEIGHTS), {"format": "pt"})
        torch.save(moments, os.path.join(folder, MOMENTS))


def load_state(accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, folder: str) -> None:
    """What save_state wrote, with this or another engine. Every process calls this."""
    try:
        _load(accelerator, model, optimizer, folder)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, KeyError, EOFError, FileNotFoundError, UnpicklingError, SafetensorError,
            TypeError, AttributeError, IndexError) as error:
        raise InputError(f"--resume_from_checkpoint {folder}: is damaged or of another model "
                         f"({' '.join(str(error).split())[:200]}): resume from another checkpoint") from error


def _load(accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, folder: str) -> None:
    if not isinstance(model, FSDPModule) and not is_zero(model):
        accelerator.load_state(folder)
        return
    weights = load_file(os.path.join(folder, WEIGHTS))
    moments = torch.load(os.path.join(folder, MOMENTS), map_location="cpu", weights_only=True)
    if is_zero(model):
        load_into_zero(model, weights, moments)
        return
    parts = model.state_dict()
    model.load_state_dict({name: _part(value, parts[name]) if name in parts else value for name, value in weights.items()})
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    for number, state in moments["state"].items():
        moments["state"][number] = {name: _part(value, parameters[number]) if value.ndim else value
                                    for name, value in state.items()}
    optimizer.load_state_dict(moments)


def _part(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def found_by_main(accelerator: Accelerator, find: Callable[[], Found]) -> Found:
    """What the main process finds, on every process. A refusal ends all of them, and is said once."""
    told, refusal = [None, None], None
    if accelerator.is_main_process:
        try:
            told[0] = find()
        except InputError as error:
            told[1], refusal = error.exit_code, error
    found, code = broadcast_object_list(told)
    if refusal is not None:
        raise refusal
    if code is not None:
        sys.exit(code)
    return found


def keep_freed_memory() -> None:
    """Let glibc keep large buffers for the next step, rather than return them to the kernel and fault them in again.

    benchmarks/bench_cpu_settings.py measures it. Where there is no mallopt (macOS, musl) nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
