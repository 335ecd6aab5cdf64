"""The search space: a YAML file of flags, each with the range or the choices that trials take its value from."""

import math
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

from wavtrain import InputError
from wavtrain.arguments import read_yaml

FLAG = "--search_space"
MOST_CORNERS = 128  # that are looked at
SET_BY_THE_SWEEP = ("config", "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "preprocessing_only",
                    "check_only", "overwrite_cache", "push_to_hub", "hub_model_id", "hub_token")
YARDSTICK = {  # what decides which clips validation has, or what is scored
    "dataset_name", "validation_split_names", "validation_split_percentage", "max_duration_in_seconds", "long_audio",
    "text_case", "remove_punctuation", "chars_to_ignore", "unicode_form", "digits", "unit", "vocabulary"}
OF_PRETRAINING = {  # how hard its task is; recognition is validated without masks
    "mask_time_prob", "mask_time_length", "require_same_masks", "cross_sample_negatives", "codebook_negatives"}


class Range(NamedTuple):
    """Numbers from low to high, whole ones if both are; `log` draws their logarithm, `step` keeps them on a grid."""

    low: float
    high: float
    step: float | None = None
    log: bool = False

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def ends(self) -> tuple[Any, ...]:
        return self.low, self.high

    def match(self, value: Any) -> Any:
        """The value as a trial would have it, None where no trial can have it."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not self.low <= value <= self.high:
            return None
        if (self.is_whole and value != int(value)) or (self.step and not _is_multiple(value - self.low, self.step)):
            return None
        return int(value) if self.is_whole else float(value)


class Choices(NamedTuple):
    """One of these."""

    values: tuple[Any, ...]

    def ends(self) -> tuple[Any, ...]:
        return self.values

    def match(self, value: Any) -> Any:
        """The value as a trial would have it, None where no trial can have it."""
        return next((each for each in self.values if each == value and isinstance(each, bool) == isinstance(value, bool)), None)


Space = dict[str, Range | Choices]


def read_space(path: str) -> Space:
    """Every line of the file, each checked as far as it can be without the script."""
    space = {str(name): _dimension(f"{FLAG} {path}: {name}", given) for name, given in read_yaml(path, FLAG).items()}
    if not space:
        raise InputError(f"{FLAG} {path}: is empty: give lines like learning_rate: {{low: 1.0e-4, high: 1.0e-3}}")
    for name in space:
        if name in SET_BY_THE_SWEEP:
            raise InputError(f"{FLAG} {path}: {name} is set by the sweep itself: leave it out")
    return space


def candidates(space: Space) -> Iterator[tuple[str, Any]]:
    """Flags with the values that the script has to take: the ends of the ranges, every choice."""
    for name, dimension in space.items():
        for value in dimension.ends():
            yield name, value


def corners(space: Space) -> Iterator[dict[str, Any]]:
    """Combinations of ends and choices: all, or some of them where they are many."""
    ends = [dimension.ends() for dimension in space.values()]
    numbers = range(math.prod(map(len, ends)))
    for number in numbers if len(numbers) <= MOST_CORNERS else random.Random(0).sample(numbers, MOST_CORNERS):
        corner = {}
        for name, values in zip(space, ends, strict=True):
            number, place = divmod(number, len(values))
            corner[name] = values[place]
        yield corner


def matched(space: Space, values: dict[str, Any]) -> dict[str, Any] | None:
    """The values as a trial would have them, None where no trial can have them all."""
    found = {name: dimension.match(values[name]) for name, dimension in space.items()}
    return None if None in found.values() else found


def remarks(space: Space, metric: str) -> list[str]:
    """What may make trials incomparable."""
    bent = sorted((YARDSTICK if metric in ("wer", "cer") else YARDSTICK | OF_PRETRAINING) & space.keys())
    return [f"note: {name} changes what validation measures: a better {metric} may only be an easier task" for name in bent]


def _dimension(place: str, given: Any) -> Range | Choices:
    if not isinstance(given, dict) or ("choices" in given) == bool({"low", "high"} & given.keys()):
        raise InputError(f"{place}: must be {{low: ..., high: ...}} or {{choices: [...]}}")
    unknown = [str(key) for key in given if key not in (("choices",) if "choices" in given else Range._fields)]
    if unknown:
        raise InputError(f"{place}: knows no {', '.join(unknown)}: a range has low, high, step, log; choices stand alone")
    return _choices(place, given["choices"]) if "choices" in given else _range(place, given)


def _choices(place: str, values: Any) -> Choices:
    if not isinstance(values, list) or len(values) < 2:
        raise InputError(f"{place}: choices must be a list of two or more values; one value belongs into --config")
    for number, value in enumerate(values):
        if not isinstance(value, (bool, int, float, str)):
            raise InputError(f"{place}: {value!r} is no choice: give numbers, words, true or false")
        if Choices(tuple(values[:number])).match(value) is not None:
            raise InputError(f"{place}: {value!r} is there twice")
    return Choices(tuple(values))


def _range(place: str, given: dict[str, Any]) -> Range:
    for key in ("low", "high", *(["step"] if "step" in given else [])):
        value = given.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            hint = "; YAML reads 1e-4 as a word, 1.0e-4 as a number" if isinstance(value, str) else ""
            raise InputError(f"{place}: {key} must be a number and is {value!r}{hint}")
    low, high, step, log = given["low"], given["high"], given.get("step"), given.get("log", False)
    if not isinstance(log, bool):
        raise InputError(f"{place}: log must be true or false and is {log!r}")
    if low >= high:
        raise InputError(f"{place}: low {low:g} must be below high {high:g}")
    if log and low <= 0:
        raise InputError(f"{place}: log needs a low above 0 and it is {low:g}")
    if log and step is not None:
        raise InputError(f"{place}: log and step do not go together: leave one out")
    if step is not None and (step <= 0 or not _is_multiple(high - low, step)):
        raise InputError(f"{place}: step {step:g} must divide the way from {low:g} to {high:g}")
    if isinstance(low, int) and isinstance(high, int) and isinstance(step, float):
        low = float(low)  # 0 to 1 in steps of 0.1
    return Range(low, high, step, log)


def _is_multiple(length: float, step: float) -> bool:
    return math.isclose(length / step, round(length / step), abs_tol=1e-9)
