"""The same three utterances in every form a corpus may have, and the rows that are read from it."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import soundfile
from conftest import sound
from hypothesis import HealthCheck, settings

from wavtrain.speech.manifests import CorpusOptions, open_corpora
from wavtrain.speech.rows import Rejection, Row, Source

# Property tests: many examples, the same ones every time.
MANY = settings(max_examples=150, deadline=None, derandomize=True, database=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture])
RATE = 16_000
TEXTS = {"61-70-0000": "ZERO ONE", "61-70-0001": "IT'S TWO", "61-70-0002": "THREE"}
SAMPLES = {name: sound(0.05 + 0.02 * number, number) for number, name in enumerate(TEXTS)}


def audio_bytes(name: str, kind: str = "FLAC") -> bytes:
    """The file of an utterance."""
    buffer = io.BytesIO()
    soundfile.write(buffer, SAMPLES[name], RATE, format=kind, subtype="PCM_16")
    return buffer.getvalue()


CLIP_BYTES = len(audio_bytes("61-70-0000"))


def write_clips(folder: Path, *names: str, kind: str = "FLAC") -> Path:
    """Audio files at names like `clips/a.flac`, all of them the first utterance; or the three utterances."""
    for name in names or [f"{name}.{kind.lower()}" for name in TEXTS]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(audio_bytes(path.stem if path.stem in TEXTS else "61-70-0000", kind))
    return folder


def write_table(path: Path, content: str | bytes | list) -> Path:
    """A table of text, bytes, rows (csv, tsv) or records (jsonl, json)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        content = _tabulated(path.suffix, content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _tabulated(ending: str, rows: list) -> str:
    if ending == ".json":
        return json.dumps(rows, indent=1)
    if ending == ".jsonl":
        return "".join(f"{json.dumps(row)}\n" for row in rows)
    buffer = io.StringIO()
    csv.writer(buffer, delimiter="," if ending == ".csv" else "\t", lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def open_sources(*names: Path | str, **options: Any) -> list[Source]:
    """The sources of corpora, as the flags would open them."""
    first = Path(names[0])
    cache = str(first.parent / f"{first.name}-cache")
    return open_corpora(CorpusOptions(tuple(map(str, names)), **options), cache_dir=cache)


def rows_of(*names: Path | str, **options: Any) -> list[Row | Rejection]:
    """All rows and rejections of corpora."""
    return [row for source in open_sources(*names, **options) for row in source.rows()]


def outcome(rows: list[Row | Rejection]) -> list[tuple[str, str | None]]:
    """(id, text) of rows, (name of the source, reason) of rejections."""
    return [(row.utterance_id, row.text) if isinstance(row, Row) else (Path(row.source).name, row.reason) for row in rows]


def content_of(source: Source, row: Row) -> bytes:
    """The encoded audio a row stands for."""
    if isinstance(row.audio, int):
        return source.read_audio(row.audio)
    return row.audio if isinstance(row.audio, bytes) else Path(row.audio).read_bytes()


def samples_of(source: Source, row: Row) -> np.ndarray:
    """The samples a row stands for, its segment cut out."""
    samples, rate = soundfile.read(io.BytesIO(content_of(source, row)), dtype="int16")
    factor = rate if row.unit == "seconds" else 1
    return samples[round(row.start * factor):None if row.stop is None else round(row.stop * factor)]


@dataclass(frozen=True)
class Form:
    """One way to write the three utterances down."""

    write: Callable[[Path], Path]  # into an empty folder; returns what --dataset_name names
    has_text: bool = True
    is_whole: bool = True  # each utterance a file of its own
    streaming: bool = False


def _audiofolder(ending: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        rows = [[f"{name}.flac", text] for name, text in TEXTS.items()]
        records = [{"file_name": file, "text": text} for file, text in rows]
        content = records if ending == "jsonl" else [["file_name", "text"], *rows]
        write_table(write_clips(folder) / f"metadata.{ending}", content)
        return folder
    return write


def _librispeech(folder: Path) -> Path:
    lines = "".join(f"{name} {text}\n" for name, text in TEXTS.items())
    write_table(write_clips(folder / "61" / "70") / "61-70.trans.txt", lines)
    return folder


def _fairseq(ending: str | None) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        root = write_clips(folder / "audio")
        lines = "".join(f"{name}.flac\t{len(SAMPLES[name])}\n" for name in TEXTS)
        words = {"wrd": list(TEXTS.values()), "ltr": [f"{' '.join(text.replace(' ', '|'))} |" for text in TEXTS.values()]}
        if ending:
            write_table(folder / f"train.{ending}", "".join(f"{line}\n" for line in words[ending]))
        return write_table(folder / "train.tsv", f"{root}\n{lines}")
    return write


def _joined(folder: Path) -> dict[str, tuple[int, int]]:
    """One recording that holds all utterances; where each is in it, in samples."""
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / "all.flac", np.concatenate(list(SAMPLES.values())), RATE, subtype="PCM_16")
    ends = np.cumsum([len(samples) for samples in SAMPLES.values()]).tolist()
    return {name: (end - len(SAMPLES[name]), end) for name, end in zip(TEXTS, ends, strict=True)}


def _speechbrain_csv(folder: Path) -> Path:
    spans = _joined(folder)
    rows = [[name, (b - a) / RATE, "$data_root/all.flac", a, b, TEXTS[name]] for name, (a, b) in spans.items()]
    return write_table(folder / "train.csv", [["ID", "duration", "wav", "start", "stop", "wrd"], *rows])


def _speechbrain_json(folder: Path) -> Path:
    spans = _joined(folder)
    records = {name: {"wav": {"file": "{data_root}/all.flac", "start": a, "stop": b}, "words": TEXTS[name]}
               for name, (a, b) in spans.items()}
    return write_table(folder / "train.json", json.dumps(records, indent=2))


def _nemo(folder: Path) -> Path:
    spans = _joined(folder)
    return write_table(folder / "train.jsonl", [
        {"audio_filepath": "all.flac", "offset": a / RATE, "duration": (b - a) / RATE, "text": TEXTS[name], "utt_id": name}
        for name, (a, b) in spans.items()])


def _common_voice(folder: Path) -> Path:
    write_clips(folder / "clips")
    rows = [["speaker", f"{name}.flac", text, "2"] for name, text in TEXTS.items()]
    write_table(folder / "train.tsv", [["client_id", "path", "sentence", "up_votes"], *rows])
    return folder


def audio_table(*audio: dict[str, Any] | None, **columns: list) -> pa.Table:
    """A table with an audio column of encoded bytes and a path, as parquet on the Hub has it."""
    structure = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({"audio": pa.array(audio, structure), **columns})


def utterances() -> pa.Table:
    """The three of them."""
    audio = [{"bytes": audio_bytes(name), "path": f"{name}.flac"} for name in TEXTS]
    return audio_table(*audio, text=list(TEXTS.values()))


def write_parquet(folder: Path, table: pa.Table, name: str = "data/train-00000-of-00001.parquet") -> Path:
    """A folder as the Hub lays datasets out."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path)
    return folder


def with_audio_feature(table: pa.Table) -> datasets.Dataset:
    """The same, the column typed as audio."""
    return datasets.Dataset(table).cast_column("audio", datasets.Audio(decode=False))


def _parquet_with_feature(folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    with_audio_feature(utterances()).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return folder


def _on_disk(*splits: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        data = with_audio_feature(utterances())
        (datasets.DatasetDict(dict.fromkeys(splits, data)) if splits else data).save_to_disk(folder)
        return folder
    return write


def _plain_parquet(folder: Path) -> Path:
    return write_parquet(folder, utterances())


FORMS = {
    "metadata.csv": Form(_audiofolder("csv")),
    "metadata.tsv": Form(_audiofolder("tsv")),
    "metadata.jsonl": Form(_audiofolder("jsonl")),
    "bare folder": Form(write_clips, has_text=False),
    "LibriSpeech": Form(_librispeech),
    "fairseq": Form(_fairseq(None), has_text=False),
    "fairseq and .wrd": Form(_fairseq("wrd")),
    "fairseq and .ltr": Form(_fairseq("ltr")),
    "SpeechBrain csv": Form(_speechbrain_csv, is_whole=False),
    "SpeechBrain json": Form(_speechbrain_json, is_whole=False),
    "NeMo": Form(_nemo, is_whole=False),
    "Common Voice": Form(_common_voice),
    "parquet": Form(_plain_parquet),
    "parquet with feature": Form(_parquet_with_feature),
    "parquet streamed": Form(_plain_parquet, streaming=True),
    "parquet with feature streamed": Form(_parquet_with_feature, streaming=True),
    "Dataset on disk": Form(_on_disk()),
    "DatasetDict on disk": Form(_on_disk("train", "test")),
}
