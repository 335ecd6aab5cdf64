"""Watches the records of pretraining for a collapse, and says in plain words what it sees and what is likely to help.

Two windows of records are compared, the last and the one before it, each of at least RECORDS records and UPDATES updates: what
is low and does not rise is not a beginning.
"""

import math
import sys
from collections import deque
from statistics import fmean, median

from tqdm import tqdm

from wavtrain import InputError

RECORDS, UPDATES = 5, 50
FEW_CODES = 0.05  # of the codebooks; healthy runs use a third of them and more
ALMOST_ONE = 1.5  # code of each, where they are small
NO_BETTER_THAN_CHANCE = 1.2
HEALTHY_NORM, BESIDE = (0.5, 2.0), 1.25  # a little beside that is not worth a word
WATCHED = ("code_perplexity", "contrastive_accuracy", "gradient_norm")
ASIDE = "gradient norm"  # alone it is no collapse

Records = list[dict[str, float]]


class Collapsed(InputError):  # noqa: N818 (it says what happened to the run)
    """The run is not to go on."""

    exit_code = 3


class CollapseGuard:
    """Given every training record, it tells each finding once, and again if it went away and came back."""

    def __init__(self, num_groups: int, codes_per_group: int, num_negatives: int, stops: bool, is_main: bool) -> None:
        """Every process has a guard, as all are to stop; one of them talks."""
        self.num_codes, self.choices, self.stops, self.is_main = num_groups * codes_per_group, 1 + num_negatives, stops, is_main
        self._few_codes = max(FEW_CODES * self.num_codes, ALMOST_ONE * num_groups)
        self._records: deque[dict[str, float]] = deque()
        self._told: set[str] = set()

    def look(self, record: dict[str, float]) -> None:
        """Warn of what this record brings to light; with `stops` a collapse ends the run."""
        if not all(math.isfinite(record[name]) for name in WATCHED):  # the update was skipped, which is counted elsewhere
            return
        self._records.append(record)
        windows = self._windows()
        if windows is None:
            return
        found = dict(filter(None, (self._codes(*windows), self._accuracy(*windows), self._norm(windows[1]))))
        for name, finding in found.items():
            if self.is_main and name not in self._told:
                tqdm.write(f"step {record['step']} warning: {finding}", file=sys.stderr)
        self._told = set(found)
        if self.stops and found.keys() - {ASIDE}:
            raise Collapsed(f"--on_collapse stop: ended after update {record['step']}; checkpoints from before that are kept")

    def _windows(self) -> tuple[Records, Records] | None:
        """The window before and the last one, once there are two."""
        records = list(self._records)
        for length in range(RECORDS, len(records) // 2 + 1):
            before, last = records[-2 * length : -length], records[-length:]
            if last[-1]["step"] - before[-1]["step"] >= UPDATES:
                while len(self._records) > 2 * length:
                    self._records.popleft()
                return before, last
        return None

    def _codes(self, before: Records, last: Records) -> tuple[str, str] | None:
        was, now = (fmean(each["code_perplexity"] for each in window) for window in (before, last))
        if now > self._few_codes or now > 1.05 * was:
            return None
        return "codes", (
            f"collapse: of {self.num_codes} codes {now:.1f} are in use (code_perplexity), and they do not become more, so "
            "there is little left to tell apart. What is likely to help, from a checkpoint before this or from the start: a "
            "lower --learning_rate or more --num_warmup_steps; more speech in an update (--gradient_accumulation_steps; the "
            "published BASE hears 1.6 hours); a higher --diversity_loss_weight or --min_gumbel_temperature; a lower "
            "--feature_penalty_weight on a small model")

    def _accuracy(self, before: Records, last: Records) -> tuple[str, str] | None:
        chance = 1 / self.choices
        was, now = (fmean(each["contrastive_accuracy"] for each in window) for window in (before, last))
        if _is_warming_up(last) or now > NO_BETTER_THAN_CHANCE * chance or now > 1.05 * was:
            return None
        return "accuracy", (
            f"no learning: after the warm-up contrastive_accuracy is {now:.4f}, no better than guessing among "
            f"{self.choices} ({chance:.4f}). What is likely to help: a --learning_rate that is neither far above nor far below "
            "the recipe's (docs/recipes.md), more speech in an update (--gradient_accumulation_steps), speech that is speech "
            "(listen to some clips; python run_preprocessing.py counts what it left out)")

    def _norm(self, last: Records) -> tuple[str, str] | None:
        low, high = HEALTHY_NORM
        norm = median(each["gradient_norm"] for each in last)
        if _is_warming_up(last) or low / BESIDE <= norm <= high * BESIDE:
            return None
        remedy = ("too high: a lower --learning_rate, more --num_warmup_steps, or --max_grad_norm" if norm > high else
                  "low: nothing is wrong while contrastive_accuracy rises; where it stands still the model may be collapsing")
        return ASIDE, f"gradient norm {norm:.3g}, where {low:g} to {high:g} is healthy; {remedy}"


def _is_warming_up(window: Records) -> bool:
    return window[-1]["learning_rate"] > window[0]["learning_rate"]
