"""Rows -> one shard of prepared speech, in a worker process: its Arrow files first, then the record that says it is done."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import xxhash

from wavtrain.durable_files import write_json, written_beside
from wavtrain.speech.clips import Clip, ClipLimits, clips_of
from wavtrain.speech.prepared_directory import MAX_EXAMPLES, features, record_path, unfinished_path
from wavtrain.speech.rows import Rejection, Row
from wavtrain.speech.shard_checksums import checksum

BATCH_ROWS, BATCH_BYTES = 100, 16 << 20  # one record batch of the Arrow files


@dataclass(frozen=True)
class Shard:
    """Some consecutive rows of one source, and what becomes of them."""

    name: str
    source: int
    corpus: str
    split: str
    rows: list[Row | Rejection] = field(repr=False)


def prepare_shard(
    shard: Shard, readers: list[Callable[[int], bytes] | None], folder: str, limits: ClipLimits, validation_percentage: float
) -> dict[str, Any]:
    """Write the shard's clips and its record below `folder`; return the record. Readers are of the sources, as in the plan."""
    writers: dict[str, _Writer] = {}
    rejected: list[Rejection] = []
    remarks = _Remarks()
    with ExitStack() as stack:
        whereabouts = stack.enter_context(_Whereabouts(whereabouts_path(folder, shard.name)))
        for number, row in enumerate(shard.rows):
            whereabouts.write(number)
            if isinstance(row, Rejection):
                rejected.append(row)
                continue
            audio = readers[shard.source](row.audio) if isinstance(row.audio, int) else row.audio
            split = "validation" if is_held_out(row.utterance_id, validation_percentage) else shard.split
            for clip in clips_of(row, audio, limits):
                if isinstance(clip, Rejection):
                    rejected.append(clip)
                    continue
                if split not in writers:
                    path = unfinished_path(folder, split, f"data-{shard.name}.arrow")
                    writers[split] = _Writer(stack.enter_context(written_beside(path)))
                writers[split].add(clip, row, shard.corpus)
                remarks.look_at(clip, row)
        splits = {split: writer.close() for split, writer in sorted(writers.items())}
    record = {"num_rows": len(shard.rows), "splits": splits, "rejected": [asdict(each) for each in rejected],
              "remarks": remarks.found}
    write_json(record_path(folder, shard.name), record)
    return record


def whereabouts_path(folder: str, shard: str) -> str:
    """Where the number of the row at work is kept while a shard is being written."""
    return unfinished_path(folder, "shards", f"{shard}.at")


def is_held_out(utterance_id: str, percentage: float) -> bool:
    """A pure function of the id: the same utterance is held out in every run, whatever else the corpus holds."""
    return xxhash.xxh3_64_intdigest(utterance_id.encode("utf-8")) < percentage / 100 * 2**64


class _Writer:
    """One Arrow file of one split, in the streamed form that `datasets` maps into memory."""

    def __init__(self, path: str):
        self.path, self.schema = path, features().arrow_schema
        self.writer = pa.ipc.new_stream(path, self.schema)
        self.batch: list[dict[str, Any]] = []
        self.batch_bytes = 0
        self.totals = {"clips": 0, "samples": 0, "bytes": 0, "fingerprints": []}

    def add(self, clip: Clip, row: Row, corpus: str) -> None:
        text = row.text if clip.is_whole and row.text and row.text.strip() else None
        self.batch.append({"utterance_id": clip.utterance_id, "audio": {"bytes": clip.audio, "path": None},
                           "num_samples": clip.num_samples, "text": text, "speaker": row.speaker or None,
                           "language": row.language or None, "corpus": corpus})
        self.batch_bytes += len(clip.audio)
        self.totals["clips"] += 1
        self.totals["samples"] += clip.num_samples
        self.totals["bytes"] += len(clip.audio)
        self.totals["fingerprints"].append(clip.fingerprint)
        if len(self.batch) >= BATCH_ROWS or self.batch_bytes >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        self.writer.write_batch(pa.RecordBatch.from_pylist(self.batch, schema=self.schema))
        self.batch, self.batch_bytes = [], 0

    def close(self) -> dict[str, Any]:
        if self.batch:
            self._flush()
        self.writer.close()
        return {**self.totals, "checksum": checksum(self.path)}


class _Remarks:
    """What is worth knowing about clips that are kept: how many, and the first few by name."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, Any]] = {}

    def look_at(self, clip: Clip, row: Row) -> None:
        if row.text is None or (clip.is_whole and row.text.strip()):
            return
        remark = self.found.setdefault("text_removed" if row.text.strip() else "empty_text", {"clips": 0, "examples": []})
        remark["clips"] += 1
        if len(remark["examples"]) < MAX_EXAMPLES:
            remark["examples"].append(clip.utterance_id)


class _Whereabouts:
    """The number of the row at work, kept in a file, so that a crash of the decoder can be told by name."""

    def __init__(self, path: str):
        self.path = path

    def __enter__(self) -> "_Whereabouts":
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        self.descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        return self

    def write(self, number: int) -> None:
        os.pwrite(self.descriptor, b"%8d" % number, 0)

    def __exit__(self, kind: object, *_: object) -> None:
        os.close(self.descriptor)
        os.remove(self.path)
