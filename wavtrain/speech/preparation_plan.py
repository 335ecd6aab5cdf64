"""What a preparation will do, known before any audio is opened: its rows, their fingerprint, and why another one differs."""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any

import xxhash

from wavtrain import InputError
from wavtrain.speech.clips import ClipLimits
from wavtrain.speech.rows import Row, Source

LAYOUT = 2  # of what is written; a change makes older directories be prepared again
SHARDS_WANTED = 256
FEWEST_ROWS, MOST_ROWS, ROWS_WHERE_UNKNOWN = 64, 4096, 1024  # of a shard
FEWEST_BYTES, MOST_BYTES, BYTES_WHERE_UNKNOWN = 4 << 20, 512 << 20, 64 << 20  # of a shard, as encoded in the corpus


@dataclass(frozen=True)
class Plan:
    """What is to be prepared, known before any audio is opened."""

    sources: list[Source]
    limits: ClipLimits
    validation_percentage: float
    summaries: list[dict[str, Any]]  # of the sources: rows and fingerprint
    asked_for: dict[str, Any]  # the corpus flags as given, for the record: `summaries` say what they came to

    @property
    def num_rows(self) -> int | None:
        counts = [summary["rows"] for summary in self.summaries]
        return None if None in counts else sum(counts)

    @property
    def shard_limits(self) -> tuple[int, int]:
        """Rows and bytes of a shard: small enough to keep many workers busy, and to lose little to a kill."""
        sizes = [summary["bytes"] for summary in self.summaries]
        num_bytes = BYTES_WHERE_UNKNOWN * SHARDS_WANTED if None in sizes else sum(sizes)
        num_rows = ROWS_WHERE_UNKNOWN * SHARDS_WANTED if self.num_rows is None else self.num_rows
        return (min(max(ceil(num_rows / SHARDS_WANTED), FEWEST_ROWS), MOST_ROWS),
                min(max(ceil(num_bytes / SHARDS_WANTED), FEWEST_BYTES), MOST_BYTES))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that the prepared speech depends on, and the fingerprint of it."""
        arguments = {**vars(self.limits), "validation_split_percentage": self.validation_percentage}
        known = {"layout": LAYOUT, "arguments": arguments, "sources": self.summaries}
        fingerprint = xxhash.xxh3_128_hexdigest(json.dumps(known, sort_keys=True).encode())
        return {"fingerprint": fingerprint, "asked_for": self.asked_for, **known}

    @property
    def fingerprint(self) -> str:
        return self.identity["fingerprint"]


def plan_preparation(
    sources: list[Source], limits: ClipLimits, validation_percentage: float, asked_for: dict[str, Any]
) -> Plan:
    """Walk every source once, opening no audio: rows are counted, files known by size and date."""
    return Plan(sources, limits, validation_percentage, [_summary(source) for source in sources], asked_for)


def _summary(source: Source) -> dict[str, Any]:
    known = {"corpus": source.corpus, "split": source.split}
    if source.signature:
        return {**known, "rows": source.num_rows, "bytes": None, "fingerprint": source.signature}
    digest = xxhash.xxh3_128()
    num_rows = num_bytes = 0
    for row in source.rows():
        num_rows += 1
        num_bytes += row.num_bytes if isinstance(row, Row) else 0
        told = ((row.utterance_id, row.num_bytes, row.modified, row.start, row.stop, row.unit, row.text, row.speaker,
                 row.language) if isinstance(row, Row) else (row.reason, os.path.basename(row.source)))
        digest.update(repr(told).encode("utf-8", "backslashreplace"))
    if num_rows == 0:
        raise InputError(f"{source.description}: holds no audio and no rows")
    return {**known, "rows": num_rows, "bytes": num_bytes, "fingerprint": digest.hexdigest()}


def changes(then: dict[str, Any], now: dict[str, Any]) -> str:
    """Why a directory prepared then does not serve now, in words."""
    if "arguments" not in then:
        return "its own record is not readable"
    before, after = then["arguments"], now["arguments"]
    found = [f"--{name} was {before.get(name)}, is {after[name]}" for name in after if before.get(name) != after[name]]
    if then.get("layout") != now["layout"]:
        found.append("another version of this program wrote it")
    old, new = then.get("sources", []), now["sources"]
    for was, source in zip(old, new, strict=False):
        if was["rows"] != source["rows"] or was["corpus"] != source["corpus"]:
            found.append(f"{was['corpus']} with {was['rows']} rows became {source['corpus']} with {source['rows']}")
        elif was != source:
            found.append(f"files or texts of {source['corpus']} changed")
    if len(old) != len(new):
        found.append(f"{len(old)} sources became {len(new)}")
    return "; ".join(found)
