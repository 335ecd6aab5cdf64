"""DeepSpeed's ZeRO-2, driven by hand: the loop says when an update ends, clips, sets the rate, and writes checkpoints.

Weights are whole; moments and the gradients of an update are parts. DeepSpeed makes one tensor of a group of AdamW: its
parameters one after the other, then zeros, in as many parts as there are processes. torch's own AdamW steps a part. An update
whose gradient is not finite is left out by DeepSpeed, in all processes.
"""

import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

NOT_WITH_ZERO = {"torch_compile": "was not tried with DeepSpeed",
                 "freeze_finetune_updates": "DeepSpeed counts Adam's steps for encoder and head together"}
BUCKET = 25_000_000  # numbers in an exchange; the 500 million that DeepSpeed takes itself are 2 GB


def refusals_of_zero(mixed_precision: str, flags: dict[str, Any]) -> dict[str, tuple[bool, str]]:
    """What cannot be had: whether it is asked for, and the remedy. A launcher's config comes as variables."""
    def says(variable: str, *harmless: str) -> bool:
        return os.environ.get(f"ACCELERATE_{variable}", "none").lower() not in ("none", "auto", *harmless)

    return {
        "DeepSpeed": (importlib.util.find_spec("deepspeed") is None, "is missing: pip install -r requirements-deepspeed.txt"),
        "zero_stage": (says("DEEPSPEED_ZERO_STAGE", "2"), "only ZeRO-2 is supported: give 2"),
        "deepspeed_config_file": (says("DEEPSPEED_CONFIG_FILE"), "is not read: give zero_stage: 2 in its place"),
        "offload_optimizer_device": (says("DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"), "is not supported: give none"),
        "offload_param_device": (says("DEEPSPEED_OFFLOAD_PARAM_DEVICE"), "is not supported: give none"),
        "gradient_clipping": (says("GRADIENT_CLIPPING"), "leave it out, --max_grad_norm clips"),
        "gradient_accumulation_steps": (says("GRADIENT_ACCUMULATION_STEPS", "1"), "leave it out, there is a flag of this name"),
        "--mixed_precision fp16": (mixed_precision == "fp16", "DeepSpeed's scaler was not tried: give bf16 or no"),
        **{f"--{flag}": (bool(flags.get(flag)), f"{why}: leave it out, or launch with DDP")
           for flag, why in NOT_WITH_ZERO.items()}}


def is_zero(model: nn.Module) -> bool:
    """Whether it is DeepSpeed's. Nothing is imported for the answer, as that takes a second."""
    return hasattr(model, "coalesce_grad_reduction")


def spread_by_zero(model: nn.Module, adam: Optimizer) -> tuple[nn.Module, Optimizer]:
    """DeepSpeed's model and optimizer around the given ones, on the processes there are."""
    import deepspeed
    import deepspeed.ops

    warnings.filterwarnings("ignore", "`torch.distributed.all_gather_into_tensor` is deprecated")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # on a CPU it would be compiled, here and now
    config = {"train_micro_batch_size_per_gpu": 1,  # has to be said, and is not looked at
              "zero_optimization": {"stage": 2, "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}}
    engine, optimizer, *_ = deepspeed.initialize(model=model, optimizer=adam, config=config)
    for _, parameters, part in _groups(optimizer):
        assert torch.equal(part, _part(parameters, part)), "this DeepSpeed lays parameters out in another way"
    return engine, optimizer


@contextmanager
def synchronised_by_zero(engine: nn.Module, is_last: bool) -> Iterator[None]:
    """Gradients are exchanged after an update's last micro-batch, in the order of the parameters.

    Left to itself DeepSpeed adds them up as they come, and those of a layer that one process drops come in another order there.
    """
    if not engine.inside_no_sync_ctxt:
        engine.of_this_update = ExitStack()
        engine.of_this_update.enter_context(engine.coalesce_grad_reduction())
    yield
    if is_last:
        engine.of_this_update.close()


def clipped_by_zero(engine: nn.Module, max_norm: float | None) -> Tensor:
    """The norm of the whole gradient, infinite where it is not finite. It is clipped when the optimizer steps."""
    engine.optimizer.clip_grad = max_norm or 0.0
    return engine.optimizer.scaled_global_norm()


def gathered_moments(engine: nn.Module, keeps: bool) -> dict[str, Any]:
    """What AdamW's state_dict would be of whole tensors, in the first process, which keeps them. Every process calls this."""
    adam, state = engine.optimizer.optimizer, {}
    moments = adam.state_dict()
    for group, (numbers, parameters, part) in zip(moments["param_groups"], _groups(engine.optimizer), strict=True):
        group["params"] = list(numbers)
        for name, value in adam.state.get(part, {}).items():
            values = _whole(value, parameters, keeps) if value.ndim else [value.cpu().clone() for _ in parameters]
            for number, each in zip(numbers, values, strict=keeps):
                state.setdefault(number, {})[name] = each
    return {**moments, "state": state}


def load_into_zero(engine: nn.Module, weights: dict[str, Tensor], moments: dict[str, Any]) -> None:
    """Whole weights and moments, as any engine writes them."""
    adam, state = engine.optimizer.optimizer, {}
    engine.module.load_state_dict(weights)
    engine.optimizer.refresh_fp32_params()
    for flat, (numbers, parameters, part) in enumerate(_groups(engine.optimizer) if moments["state"] else ()):
        given = [moments["state"][number] for number in numbers]
        if len({float(each["step"]) for each in given}) > 1:
            raise ValueError("some of its parameters were held still, which DeepSpeed cannot go on with")
        state[flat] = {name: _part([each[name].view_as(like) for each, like in zip(given, parameters, strict=True)], part)
                       if value.ndim else value for name, value in given[0].items()}
    adam.load_state_dict({**adam.state_dict(), "state": state})


def _groups(optimizer: Optimizer) -> Iterator[tuple[range, list[Tensor], Tensor]]:
    """Of each group the numbers that a state_dict of whole tensors gives its parameters, they, and this process's part."""
    first = 0
    for parameters, group in zip(optimizer.bit16_groups, optimizer.optimizer.param_groups, strict=True):
        (part,) = group["params"]
        yield range(first, first + len(parameters)), parameters, part
        first += len(parameters)


def _whole(part: Tensor, parameters: list[Tensor], keeps: bool) -> list[Tensor]:
    """For the parameters of a group, from everyone's parts; nothing in a process that does not keep it."""
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())] if keeps else None
    dist.gather(part, parts)
    if not keeps:
        return []
    sizes = [parameter.numel() for parameter in parameters]
    values = torch.cat(parts)[:sum(sizes)].cpu().split(sizes)
    return [value.view_as(parameter).clone() for value, parameter in zip(values, parameters, strict=True)]


def _part(values: list[Tensor], like: Tensor) -> Tensor:
    """This process's part of the values for a group."""
    part = torch.cat([value.detach().flatten() for value in values])[dist.get_rank() * like.numel():][:like.numel()]
    return nn.functional.pad(part, (0, like.numel() - part.numel())).to(like.device)
