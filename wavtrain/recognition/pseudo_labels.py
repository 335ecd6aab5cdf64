"""Hypotheses as transcripts: an ordinary folder of audio with metadata.csv, for the fine-tuning script and anyone else."""

import csv
import os
from collections.abc import Sequence

import datasets

from wavtrain import InputError
from wavtrain.durable_files import written_beside
from wavtrain.recognition.decoding import Hypothesis
from wavtrain.recognition.vocabularies import NEVER_SAID
from wavtrain.speech.waveforms import SAMPLING_RATE

METADATA = "metadata.csv"
COLUMNS = ("file_name", "text", "confidence", "utterance_id", "speaker", "language")


def make_folder(folder: str) -> None:
    """Empty, before the work that fills it: audio of an earlier corpus would mix with this one's."""
    try:
        os.makedirs(folder, exist_ok=True)
        held = os.listdir(folder)
    except OSError as error:
        raise InputError(f"--pseudo_label {folder}: no folder can be made there ({error.strerror})") from error
    if held:
        raise InputError(f"--pseudo_label {folder}: holds {METADATA if METADATA in held else held[0]} already: remove the "
                         "folder, or name another one")


def write_pseudo_labels(folder: str, clips: datasets.Dataset, hypotheses: Sequence[Hypothesis], min_confidence: float) -> str:
    """The clips as they are stored, those with a text that is certain enough; metadata.csv last. Says how many there are."""
    certain = [row for row, each in enumerate(hypotheses) if _is_text(each.text) and each.confidence >= min_confidence]
    seconds = 0.0
    with written_beside(os.path.join(folder, METADATA)) as part, open(part, "w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(COLUMNS)
        for row in certain:
            clip, name = clips[row], f"{row:08d}.flac"
            with open(os.path.join(folder, name), "wb") as file:
                file.write(clip["audio"]["bytes"])
            best = hypotheses[row]
            known = (clip[column] for column in COLUMNS[3:])
            writer.writerow([name, best.text, f"{best.confidence:.4f}", *known])
            seconds += clip["num_samples"] / SAMPLING_RATE
    return (f"{folder}: a corpus of {len(certain)} of {len(hypotheses)} clips, {seconds / 3600:.2f} h, that are certain "
            f"enough; train on it with --dataset_name {folder}")


def _is_text(text: str) -> bool:
    """Something, and nothing that would be learned letter by letter: <unk> has four."""
    return bool(text) and not any(token in text for token in NEVER_SAID)
