"""Watches the records of pretraining for a collapse, and says in plain words what it sees and what is likely to help.

A single update is noisy, so records make blocks of as many updates, however often something is logged. Few codes that do not
become more from one block to the next are a collapse. Learning may begin late: accuracy and gradients are judged by
PATIENCE blocks. The last update is judged with what there is by then.
"""

import math
import sys
from collections import deque
from itertools import chain
from statistics import fmean, median

from tqdm import tqdm

from wavtrain import InputError

UPDATES, SHARE, RECORDS = 50, 1 / 200, 2  # of a block, at least: updates, of the run's updates, records
PATIENCE = 4  # blocks
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

    def __init__(self, num_groups: int, codes_per_group: int, num_negatives: int, total_steps: int, logging_steps: int,
                 stops: bool, is_main: bool) -> None:
        """Every process has a guard, as all are to stop; one of them talks."""
        self.num_codes, self.choices, self.stops, self.is_main = num_groups * codes_per_group, 1 + num_negatives, stops, is_main
        self.total_steps, self.logging_steps, self._length = total_steps, logging_steps, max(UPDATES, SHARE * total_steps)
        self._few_codes = max(FEW_CODES * self.num_codes, ALMOST_ONE * num_groups)
        self._first: int | None = None  # update that is looked at
        self._began = 0  # of the growing block
        self._blocks: deque[Records] = deque(maxlen=2 * PATIENCE)
        self._growing: Records = []
        self._told: set[str] = set()

    def look(self, record: dict[str, float]) -> None:
        """Warn of what this record brings to light; with `stops` a collapse ends the run."""
        if not self._ends_block(record):
            return
        is_last = record["step"] == self.total_steps
        found = dict(filter(None, (self._codes(is_last), self._accuracy(is_last), self._norm())))
        for name, finding in found.items():
            if self.is_main and name not in self._told:
                tqdm.write(f"step {record['step']} warning: {finding}", file=sys.stderr)
        self._told = set(found)
        if self.stops and found.keys() - {ASIDE}:
            raise Collapsed(f"--on_collapse stop: ended after update {record['step']}; checkpoints from before that are kept")

    def _ends_block(self, record: dict[str, float]) -> bool:
        """Whether there is a new block with it. The last of a run may be short; a run without UPDATES has none."""
        step, is_last = record["step"], record["step"] == self.total_steps
        if self._first is None:
            self._first = self._began = max(1, step - self.logging_steps + 1)
        if all(math.isfinite(record[name]) for name in WATCHED):  # otherwise the update was skipped, which is counted elsewhere
            self._growing.append(record)
        is_whole = len(self._growing) >= RECORDS and step - self._began + 1 >= self._length
        if not is_whole and not (is_last and step - self._first + 1 >= UPDATES):
            return False
        if len(self._growing) < RECORDS and self._blocks:  # the last update of an epoch may have little speech
            self._blocks[-1].extend(self._growing)
        elif self._growing:
            self._blocks.append(self._growing)
        self._growing, self._began = [], step + 1
        return bool(self._blocks)

    def _windows(self, length: int) -> tuple[Records, Records]:
        """So many blocks before the newest ones, and the newest, as far as there are any."""
        blocks = list(self._blocks)
        return list(chain(*blocks[-2 * length : -length])), list(chain(*blocks[-length:]))

    def _codes(self, is_last: bool) -> tuple[str, str] | None:
        before, last = self._windows(1)
        if not before and not is_last:
            return None
        if not before:  # all there is
            before, last = last[: len(last) // 2], last[len(last) // 2 :]
        was, now = _mean("code_perplexity", before), _mean("code_perplexity", last)
        if now > self._few_codes or now > 1.05 * was:
            return None
        return "codes", (
            f"collapse: of {self.num_codes} codes {now:.1f} are in use (code_perplexity), and they do not become more, so "
            "there is little left to tell apart. What is likely to help, from a checkpoint before this or from the start: a "
            "lower --learning_rate or more --num_warmup_steps; more speech in an update (--gradient_accumulation_steps; the "
            "published BASE hears 1.6 hours); a higher --diversity_loss_weight or --min_gumbel_temperature; a lower "
            "--feature_penalty_weight on a small model")

    def _accuracy(self, is_last: bool) -> tuple[str, str] | None:
        before, last = self._windows(PATIENCE)
        if len(self._blocks) < (PATIENCE if is_last else 2 * PATIENCE) or _is_warming_up(last):
            return None
        chance, was, now = 1 / self.choices, _mean("contrastive_accuracy", before), _mean("contrastive_accuracy", last)
        if now > NO_BETTER_THAN_CHANCE * chance or now > 1.05 * was:
            return None
        return "accuracy", (
            f"no learning: after the warm-up contrastive_accuracy is {now:.4f}, no better than guessing among "
            f"{self.choices} ({chance:.4f}). What is likely to help: a --learning_rate that is neither far above nor far below "
            "the recipe's (docs/recipes.md), more speech in an update (--gradient_accumulation_steps), speech that is speech "
            "(listen to some clips; python run_preprocessing.py counts what it left out)")

    def _norm(self) -> tuple[str, str] | None:
        (low, high), (_, last) = HEALTHY_NORM, self._windows(PATIENCE)
        norm = median(each["gradient_norm"] for each in last)
        if len(self._blocks) < PATIENCE or _is_warming_up(last) or low / BESIDE <= norm <= high * BESIDE:
            return None
        remedy = ("too high: a lower --learning_rate, more --num_warmup_steps, or --max_grad_norm" if norm > high else
                  "low: nothing is wrong while contrastive_accuracy rises; where it stands still the model may be collapsing")
        return ASIDE, f"gradient norm {norm:.3g}, where {low:g} to {high:g} is healthy; {remedy}"


def _mean(name: str, window: Records) -> float:
    """Before the first record anything is possible."""
    return fmean(each[name] for each in window) if window else math.inf


def _is_warming_up(window: Records) -> bool:
    return window[-1]["learning_rate"] > window[0]["learning_rate"]
