"""AdamW as the flags say."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class OptimizerOptions:
    """The fields are flags of the same names."""

    learning_rate: float
    weight_decay: float
    exempt_norms_and_biases: bool
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float


def adamw(model: nn.Module, options: OptimizerOptions) -> torch.optim.Optimizer:
    """The fused one: it can leave out an update without asking the device first."""
    parameters = [each for each in model.parameters() if each.requires_grad]
    exempt = [each for each in parameters if each.ndim <= 1] if options.exempt_norms_and_biases else []
    decayed = [each for each in parameters if not any(each is other for other in exempt)]
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": exempt, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=options.learning_rate,
                             betas=(options.adam_beta1, options.adam_beta2), eps=options.adam_epsilon, fused=True)
