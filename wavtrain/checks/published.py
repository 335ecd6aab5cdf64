"""What published recipes did, to compare a run with. docs/recipes.md has the sources, and where they contradict each other."""

from typing import NamedTuple

from transformers import PreTrainedConfig

WARMUP_SHARES = 0.08, 0.1  # of a pretraining, in the paper; of a fine-tuning, in fairseq's files
ADAM = {"adam_beta2": 0.98, "adam_epsilon": 1e-6, "weight_decay": 0.01}  # of every pretraining


class Recipe(NamedTuple):
    """A run as it was published."""

    name: str
    hours: float  # of speech in an update, at most
    rates: tuple[float, float]  # the highest of the schedule: from, to, where there are several
    updates: int | None = None  # of a pretraining

    @property
    def pretrains(self) -> bool:
        """Fine-tunings differ too much in their updates to be compared by these."""
        return self.updates is not None


BASE = Recipe("BASE", 64 * 1.4e6 / 16_000 / 3600, (5e-4, 5e-4), 400_000)
LARGE_HOURS = 128 * 1.2e6 / 16_000 / 3600
PRETRAINING = {  # (model type, layers, norm of the convolutions; None: either)
    ("wav2vec2", 12, None): BASE,
    ("wav2vec2", 24, "group"): Recipe("LARGE", LARGE_HOURS, (3e-4, 3e-4), 250_000),
    ("wav2vec2", 24, "layer"): Recipe("LARGE LV-60 and XLSR", LARGE_HOURS, (1e-3, 5e-3), 1_000_000),
    ("wav2vec2-conformer", 12, None): BASE._replace(name="conformer BASE"),
    ("wav2vec2-conformer", 24, None): Recipe("conformer LARGE", LARGE_HOURS, (5e-3, 5e-3), 1_000_000)}
FINE_TUNING = {  # layers, of any family; from pretrained weights
    12: Recipe("BASE", 8 * 3.2e6 / 16_000 / 3600, (2e-5, 1e-4)),
    24: Recipe("LARGE", 20 * 1.28e6 / 16_000 / 3600, (2e-5, 3e-4))}


def pretraining_recipe(config: PreTrainedConfig) -> Recipe | None:
    """That of a model of this size, if there is one."""
    layers, norm = config.num_hidden_layers, config.feat_extract_norm
    kinds = ((config.model_type, layers, norm), (config.model_type, layers, None))
    return next((PRETRAINING[kind] for kind in kinds if kind in PRETRAINING), None)


def fine_tuning_recipe(config: PreTrainedConfig) -> Recipe | None:
    """That of an encoder of this size, if there is one."""
    return FINE_TUNING.get(config.num_hidden_layers)
