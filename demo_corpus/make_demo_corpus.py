"""Make the demo corpus: about 25 minutes of synthesised English and German speech.

Needs the program espeak-ng on the PATH, and numpy, soundfile (0.14 or later) and soxr. Run:

    python demo_corpus/make_demo_corpus.py [--out FOLDER]

The sentences come from sentences_en.txt and sentences_de.txt beside this file. Each split becomes one folder
with Ogg Opus files and a metadata.csv (file_name, text, speaker, language). Every run gives the same sentences,
speakers and file names; the encoded bytes differ, as an Ogg stream carries a random serial number.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

HERE = Path(__file__).resolve().parent
SPLITS = ("train", "validation", "test")
LANGUAGES = ("en", "de")
COLUMNS = ("file_name", "text", "speaker", "language")
HELD_OUT = 15  # of each language: the last 15 sentences are validation, the 15 before them are test
PER_TRAIN_SPEAKER = 30  # sentences that one train speaker reads
SAMPLE_RATE = 16000  # a rate that Opus takes; espeak-ng gives 22050
COMPRESSION_LEVEL = 0.96  # libsndfile's scale from 0 to 1; this is about 17 kbit/s at 16 kHz mono
PEAK = 0.7  # every recording is scaled to this peak


class Speaker(NamedTuple):
    """One espeak-ng voice with its variant, pitch (0 to 99) and speed (words a minute)."""

    name: str
    split: str
    voice: str
    pitch: int
    speed: int

    @property
    def language(self) -> str:
        return self.voice[:2]


# "en" is British English; espeak-ng 1.51 silently ignores a variant after "en-gb".
SPEAKERS = (
    Speaker("en_anna", "train", "en-us+f2", 52, 150),
    Speaker("en_brian", "train", "en+m3", 42, 165),
    Speaker("en_clara", "train", "en-gb-x-rp+f4", 58, 145),
    Speaker("en_duncan", "train", "en-gb-scotland+m7", 46, 155),
    Speaker("en_edith", "train", "en-us+f1", 40, 140),
    Speaker("en_felix", "train", "en-029+m1", 50, 160),
    Speaker("en_grace", "train", "en+linda", 55, 165),
    Speaker("de_greta", "train", "de+f3", 50, 145),
    Speaker("de_jonas", "train", "de+m6", 55, 160),
    Speaker("de_otto", "train", "de+m2", 38, 140),
    Speaker("de_rolf", "train", "de+m4", 45, 155),
    Speaker("de_wilma", "train", "de+belinda", 42, 150),
    Speaker("en_harold", "validation", "en-us+m5", 44, 140),
    Speaker("de_sabine", "validation", "de+steph", 48, 130),
    Speaker("en_ivy", "test", "en-gb-x-rp+f5", 50, 145),
    Speaker("de_theo", "test", "de+m8", 50, 130),
)


def read_sentences(language: str) -> dict[str, list[str]]:
    """The sentences of one language by split."""
    lines = (HERE / f"sentences_{language}.txt").read_text(encoding="utf-8").split("\n")
    sentences = [line.strip() for line in lines if line.strip()]
    return {
        "train": sentences[: -2 * HELD_OUT],
        "test": sentences[-2 * HELD_OUT : -HELD_OUT],
        "validation": sentences[-HELD_OUT:],
    }


def sentences_of(speaker: Speaker, sentences: list[str]) -> list[str]:
    """What one speaker reads: all of a held-out split; in train a window, which overlaps the next speaker's."""
    if speaker.split != "train":
        return sentences
    group = [other for other in SPEAKERS if (other.split, other.language) == (speaker.split, speaker.language)]
    start = group.index(speaker) * len(sentences) // len(group)
    return [sentences[(start + step) % len(sentences)] for step in range(PER_TRAIN_SPEAKER)]


def synthesise(espeak: str, speaker: Speaker, text: str, wav: Path) -> np.ndarray:
    """The spoken text as float32 mono samples at SAMPLE_RATE; wav is a scratch file."""
    command = [espeak, "-v", speaker.voice, "-p", str(speaker.pitch), "-s", str(speaker.speed)]
    command += ["-b", "1", "--stdin", "-w", str(wav)]  # -b 1: the input is UTF-8
    subprocess.run(command, input=text.encode("utf-8"), check=True)
    samples, rate = soundfile.read(wav, dtype="float32")
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE)
    return samples * (PEAK / max(float(np.abs(samples).max()), 1e-6))


def write_split(espeak: str, split: str, sentences: dict[str, dict[str, list[str]]], folder: Path) -> tuple[int, float]:
    """Write one split's recordings and metadata.csv; gives the number of files and the seconds of speech."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, str, str, str]] = []
    seconds = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        for speaker in (speaker for speaker in SPEAKERS if speaker.split == split):
            texts = sentences_of(speaker, sentences[speaker.language][split])
            for number, text in enumerate(texts, start=1):
                samples = synthesise(espeak, speaker, text, Path(scratch) / "speech.wav")
                name = f"{speaker.name}_{number:02d}.opus"
                soundfile.write(
                    folder / name,
                    samples,
                    SAMPLE_RATE,
                    format="OGG",
                    subtype="OPUS",
                    compression_level=COMPRESSION_LEVEL,
                )
                rows.append((name, text, speaker.name, speaker.language))
                seconds += len(samples) / SAMPLE_RATE
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    return len(rows), seconds


def main(argv: list[str] | None = None) -> int:
    """Make all three splits; exit code 2 where espeak-ng is missing."""
    parser = argparse.ArgumentParser(description="Make the demo corpus with espeak-ng.")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for train/, validation/ and test/")
    args = parser.parse_args(argv)
    espeak = shutil.which("espeak-ng")
    if espeak is None:
        print("espeak-ng was not found: install it (Debian: apt-get install espeak-ng)", file=sys.stderr)
        return 2
    sentences = {language: read_sentences(language) for language in LANGUAGES}
    for split in SPLITS:
        files, seconds = write_split(espeak, split, sentences, args.out / split)
        print(f"{split}: {files} files, {seconds / 60:.2f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
