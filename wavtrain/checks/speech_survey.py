"""What the speech is like: durations, speakers, languages, twins; of a sample of decoded clips loudness, silence, clipping."""

import os
from itertools import pairwise
from typing import NamedTuple

import datasets
import numpy as np
import pyarrow
import pyarrow.compute

from wavtrain import InputError
from wavtrain.checks.findings import Checked, in_hours, percent
from wavtrain.loading import decoded
from wavtrain.planned_run import PlannedRun
from wavtrain.speech.prepared_directory import PreparedSpeech
from wavtrain.speech.waveforms import SAMPLING_RATE

NUM_HEARD, MAX_SECONDS_HEARD = 200, 1_500.0  # clips of the sample, and how much of them: about a second of work
DURATIONS = (0, 1, 2, 5, 10, 15, 20, 30, np.inf)  # seconds
FRAME = 400  # samples, 25 ms, of which is said whether they are silent
SILENT, QUIETER = -60.0, -40.0  # decibels: below full scale, and below the loud frames of the clip
FULL_SCALE, CLIPPED = 0.999, 5e-4  # share of samples at full scale
HALF_BAND, NOTHING = SAMPLING_RATE / 4, 1e-6  # above it is nothing: recorded at 8 kHz
OFTEN, MOSTLY, ALMOST_ALL = 0.05, 0.5, 0.8


class Sound(NamedTuple):
    """Of one clip."""

    loudness: float  # decibels below full scale, of the frames that are not silent
    silence: float  # share of frames
    clipped: float  # share of samples at full scale
    is_narrow: bool  # nothing above 4 kHz

    @property
    def is_empty(self) -> bool:
        """No frame is louder than SILENT."""
        return self.silence == 1


def sound_of(wave: np.ndarray) -> Sound:
    """Measured on whole frames; a clip shorter than one frame is filled up."""
    wave = np.pad(wave, (0, max(0, FRAME - len(wave))))
    frames = wave[: len(wave) // FRAME * FRAME].reshape(-1, FRAME)
    levels = 10 * np.log10(np.square(frames).mean(axis=1) + 1e-12)
    loud = levels > max(SILENT, np.percentile(levels, 95) + QUIETER)
    loudness = 10 * np.log10(np.mean(10 ** (levels[loud] / 10))) if loud.any() else float(levels.max())
    power = np.square(np.abs(np.fft.rfft(frames[loud] * np.hanning(FRAME)))).sum(axis=0)
    above = np.fft.rfftfreq(FRAME, 1 / SAMPLING_RATE) > 1.05 * HALF_BAND
    is_narrow = bool(loud.any() and power[above].sum() < NOTHING * power.sum())
    return Sound(float(loudness), 1 - float(loud.mean()), float((np.abs(wave) >= FULL_SCALE).mean()), is_narrow)


def heard_sample(clips: datasets.Dataset, num_samples: np.ndarray) -> dict[str, Sound]:
    """Clips at equal distances, always the same ones."""
    rows = np.unique(np.linspace(0, len(clips) - 1, NUM_HEARD).astype(int))
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    rows = rows[: max(1, np.searchsorted(np.cumsum(num_samples[rows]), MAX_SECONDS_HEARD * SAMPLING_RATE))]
    found = {}
    for row in np.sort(rows).tolist():
        clip = clips[row]
        found[clip["utterance_id"]] = sound_of(decoded(clip["utterance_id"], clip["audio"]["bytes"]))
    return found


def sound_checks(run: PlannedRun) -> Checked:
    """Each finding names a clip to listen to."""
    found = Checked()
    try:
        heard = heard_sample(run.speech.clips, run.speech.num_samples)
    except InputError as error:  # the run will say so when it comes to that clip, if it does
        found.warn("sound", str(error))
        return found
    voiced = [each for each in heard.values() if not each.is_empty] or list(heard.values())
    loudness = np.array([each.loudness for each in voiced])
    silence = float(np.mean([each.silence for each in heard.values()]))
    low, middle, high = np.percentile(loudness, [5, 50, 95])
    found.facts["sound"] = f"{middle:.0f} dBFS ({low:.0f} to {high:.0f}), {percent(silence)} silence, in {len(heard)} of them"
    found.numbers.update(loudness=float(middle), silence=silence)
    kinds = {  # what is found: which clips, from which share of them on, what it means
        "empty": (lambda each: each.is_empty, 0, "are silent from beginning to end: remove them, nothing is learned there"),
        "clipping": (lambda each: each.clipped > CLIPPED, OFTEN, "are distorted, being cut off at full scale: look for a less "
                     "loud original"),
        "silence": (lambda each: MOSTLY < each.silence < 1, OFTEN, "are silent for more than half of their time: trim them, "
                    "masks and updates are spent on nothing"),
        "band": (lambda each: each.is_narrow, OFTEN, "have nothing above 4 kHz: telephone speech, or recorded at 8 kHz; a "
                 "model that knows 16 kHz hears another kind of speech")}
    for about, (is_so, allowed, meaning) in kinds.items():
        such = [name for name, each in heard.items() if is_so(each)]
        if len(such) > allowed * len(heard):
            say = found.warn if about == "empty" and len(such) > MOSTLY * len(heard) else found.note
            say(about, f"{len(such)} of {len(heard)} clips of a sample {meaning} (as {such[0]})")
    if not getattr(run.extractor, "do_normalize", True) and (middle < -45 or high - low > 30):
        found.note("loudness", f"the speech is at {low:.0f} to {high:.0f} dB and the model takes it as loud as it comes: level "
                   "it, or set do_normalize in the model's preprocessor_config.json")
    return found


def corpus_checks(run: PlannedRun) -> Checked:
    """Durations, speakers, languages and twins of the training clips, by columns alone."""
    found, seconds = Checked(), run.speech.num_samples * run.speech.slowest / SAMPLING_RATE
    validation = f" ({len(run.held_out.num_samples):,} for validation)" if run.held_out else ""
    hours = in_hours(seconds.sum() / 3600)
    found.facts["clips"] = f"{len(seconds):,} to train on{validation}, {hours}; {histogram(seconds)}"
    found.numbers.update(clips=len(seconds), hours=float(seconds.sum() / 3600))
    table = table_of(run.prepared, "train")
    known = {}
    for column in ("speaker", "language"):
        counts = counted(table.column(column))
        if counts:
            most, clips = next(iter(counts.items()))
            share = clips / sum(counts.values())
            many = len(counts) > 1
            known[column] = f"{len(counts):,} {column}s, {percent(share)} {most}" if many else f"one {column}, {most}"
            found.numbers.update({f"{column}s": len(counts), f"largest_{column}": share})
            if share > ALMOST_ALL and len(counts) > 1:
                found.note(column, f"{column} {most} has {percent(share)} of the training clips, and nothing evens that out: "
                           "others need more clips to be learned")
    if known:
        found.facts["voices"] = "; ".join(known.values())
    twins = run.prepared.report["remarks"].get("duplicate_audio", {})
    if twins.get("across_splits"):
        found.warn("duplicates", f"{twins['across_splits']:,} clips of validation have a twin in train, so its figures will be "
                   f"too good: remove them from the corpus (the first pair: {' = '.join(twins['examples'][0])})")
    elif twins and twins["clips"] > OFTEN * len(seconds):
        found.note("duplicates", f"{twins['clips']:,} clips have the samples of an earlier one, so some are heard more often: "
                   f"remove them from the corpus (the first pair: {' = '.join(twins['examples'][0])})")
    return found


def histogram(seconds: np.ndarray) -> str:
    """The shortest and the longest, and what is between, in one line."""
    counts, _ = np.histogram(seconds, DURATIONS)
    bounds = [f"{low}-{high} s" if high < np.inf else f"over {low} s" for low, high in pairwise(DURATIONS)]
    shares = [f"{bound} {percent(count / len(seconds))}" for bound, count in zip(bounds, counts, strict=True) if count]
    low, high = f"{seconds.min():.1f}", f"{seconds.max():.1f}"
    return (f"{low} to {high} s" if low != high else f"{low} s each") + (f": {', '.join(shares)}" if len(shares) > 1 else "")


def table_of(prepared: PreparedSpeech, split: str) -> pyarrow.Table:
    """The columns of a split that `load` has opened before, and checked."""
    return datasets.load_from_disk(os.path.join(prepared.folder, split)).data.table


def counted(column: pyarrow.ChunkedArray) -> dict[str, int]:
    """How often each value that is known occurs, the most frequent first."""
    counts = {each["values"]: each["counts"] for each in pyarrow.compute.value_counts(column).to_pylist()
              if each["values"] not in (None, "")}
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
