"""The prepared directory as an interface: its columns, when it is complete, how finished shards become it, how it is opened.

    train/ validation/   plain `datasets` on disk      rejected.jsonl   a line for every clip left out
    preparation.json     what was prepared from what, and the counts; written last: without it nothing is complete
    unfinished/          shards and their records while a preparation runs
"""

import json
import os
import shutil
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from wavtrain import InputError, __version__
from wavtrain.durable_files import flush_folder, read_json, write_json, write_lines
from wavtrain.speech.shard_checksums import CHECKSUMS, DESCRIPTIONS, checksum, opened
from wavtrain.speech.waveforms import SAMPLING_RATE

SPLITS = ("train", "validation")
MAX_EXAMPLES = 10  # of each remark


def features() -> datasets.Features:
    """The columns of prepared speech."""
    text = datasets.Value("string")
    audio = datasets.Audio(sampling_rate=SAMPLING_RATE, decode=False)
    return datasets.Features({"utterance_id": text, "audio": audio, "num_samples": datasets.Value("int64"),
                              "text": text, "speaker": text, "language": text, "corpus": text})


@dataclass(frozen=True)
class PreparedSpeech:
    """A complete prepared directory."""

    folder: str
    report: dict[str, Any]  # preparation.json

    def load(self, split: str) -> datasets.Dataset | None:
        """The clips of a split, mapped into memory; None where it has none."""
        if split not in self.report["splits"]:
            return None
        return opened(os.path.join(self.folder, split), features())


def open_prepared(folder: str) -> PreparedSpeech | None:
    """The prepared speech in a folder, None where there is none; an InputError where it is not complete."""
    report_path = os.path.join(folder, "preparation.json")
    try:
        report = read_json(report_path)
        if report is not None:
            report["fingerprint"], [each["clips"] for each in report["splits"].values()]
            return PreparedSpeech(folder, report)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{report_path}: is damaged ({error}): prepare this directory again with --overwrite_cache") from error
    if os.path.isfile(unfinished_path(folder, "plan.json")):
        raise InputError(f"{folder}: its preparation is not finished: run the run_preprocessing.py command that began it again")
    return None


def unfinished_path(folder: str, *names: str) -> str:
    """A place in the part of the directory that a running preparation works in."""
    return os.path.join(folder, "unfinished", *names)


def record_path(folder: str, shard: str) -> str:
    """Where a shard's record lies; the shard is done when it is there."""
    return unfinished_path(folder, "shards", f"{shard}.json")


def join_shards(folder: str, shards: list[str], identity: dict[str, Any]) -> PreparedSpeech:
    """Make finished shards the prepared directory, in their order; what stood there before goes in that moment."""
    records = [_read_record(folder, shard) for shard in shards]
    rejected = [rejection for record in records for rejection in record["rejected"]]
    write_lines(unfinished_path(folder, "rejected.jsonl"), (
        json.dumps({key: each[key] for key in ("source", "reason", "detail")}, ensure_ascii=False) for each in rejected))
    totals = {split: _total([record["splits"][split] for record in records if split in record["splits"]]) for split in SPLITS}
    totals = {split: total for split, total in totals.items() if total["clips"]}
    if "train" not in totals:
        raise InputError(_nothing_usable(folder, totals, rejected))
    for split in totals:
        of_files = {f"data-{shard}.arrow": record["splits"][split]["checksum"]
                    for shard, record in zip(shards, records, strict=True) if split in record["splits"]}
        _describe(unfinished_path(folder, split), of_files, identity["fingerprint"])
    report = {**identity, "versions": {"wavtrain": __version__, "datasets": datasets.__version__}, "splits": totals,
              "rejected": _count(rejected), "remarks": _remarks(folder, records, totals)}
    write_json(unfinished_path(folder, "preparation.json"), report, indent=1)
    return _put_in_place(folder, report)


def finish_interrupted_join(folder: str) -> PreparedSpeech | None:
    """The last step of a join that was killed in it, None where there is no such thing."""
    report = read_json(unfinished_path(folder, "preparation.json"))
    return _put_in_place(folder, report) if report else None


def _put_in_place(folder: str, report: dict[str, Any]) -> PreparedSpeech:
    """Renames only; each may have been done already by a join that was killed, preparation.json is the last."""
    for name in ("preparation.json", *SPLITS):
        target, source = os.path.join(folder, name), unfinished_path(folder, name)
        is_new = name == "preparation.json" or os.path.isdir(source) or name not in report["splits"]
        if is_new and os.path.isdir(target):
            shutil.rmtree(target)
        elif is_new and os.path.exists(target):
            os.remove(target)
        if name in report["splits"] and os.path.isdir(source):
            os.rename(source, target)
    if os.path.exists(unfinished_path(folder, "rejected.jsonl")):
        os.replace(unfinished_path(folder, "rejected.jsonl"), os.path.join(folder, "rejected.jsonl"))
    flush_folder(folder)
    os.replace(unfinished_path(folder, "preparation.json"), os.path.join(folder, "preparation.json"))
    flush_folder(folder)
    drop_unfinished(folder)
    return PreparedSpeech(folder, report)


def drop_unfinished(folder: str) -> None:
    """All of it at once: records that outlive their plan, after a kill in here, would be taken for those of the next."""
    dropped = os.path.join(folder, "unfinished.dropped")
    shutil.rmtree(dropped, ignore_errors=True)
    if os.path.isdir(unfinished_path(folder)):
        os.rename(unfinished_path(folder), dropped)
        shutil.rmtree(dropped, ignore_errors=True)


def _read_record(folder: str, shard: str) -> dict[str, Any]:
    try:
        record = read_json(record_path(folder, shard))
        for split in record["splits"].values():
            split["fingerprints"] = np.array(split["fingerprints"], dtype=np.uint64)
        return record
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{record_path(folder, shard)}: is damaged ({error}): remove it, and run this again") from error


def _total(parts: list[dict[str, Any]]) -> dict[str, Any]:
    samples = sum(part["samples"] for part in parts)
    return {"clips": sum(part["clips"] for part in parts), "hours": round(samples / SAMPLING_RATE / 3600, 6),
            "bytes": sum(part["bytes"] for part in parts)}


def _count(rejected: list[dict[str, Any]]) -> dict[str, Any]:
    """Clips and hours (where they are known) for each reason."""
    counts: dict[str, dict[str, Any]] = {}
    for each in rejected:
        count = counts.setdefault(each["reason"], {"clips": 0, "hours": 0.0})
        count["clips"] += 1
        count["hours"] += each["seconds"] / 3600
    return {reason: {**count, "hours": round(count["hours"], 6)} for reason, count in sorted(counts.items())}


def _nothing_usable(folder: str, totals: dict[str, Any], rejected: list[dict[str, Any]]) -> str:
    if totals:
        return "all clips are held out for validation and none is left to train on: lower --validation_split_percentage"
    reasons = ", ".join(f"{reason} {count['clips']}" for reason, count in _count(rejected).items())
    first = f"; the first: {rejected[0]['detail']}" if rejected else ""
    all_of_them = unfinished_path(folder, "rejected.jsonl")
    return f"nothing usable: {len(rejected)} clips left out ({reasons}){first}; all in {all_of_them}"


def _describe(folder: str, checksums: dict[str, Any], fingerprint: str) -> None:
    """What load_from_disk wants to find beside the Arrow files, and checksums of all."""
    datasets.DatasetInfo(features=features()).write_to_directory(folder)
    state = {"_data_files": [{"filename": name} for name in checksums], "_fingerprint": fingerprint[:16],
             "_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False,
             "_split": os.path.basename(folder)}
    write_json(os.path.join(folder, "state.json"), state)
    described = {name: checksum(os.path.join(folder, name)) for name in DESCRIPTIONS}
    write_json(os.path.join(folder, CHECKSUMS), {**checksums, **described}, indent=1)


def _remarks(folder: str, records: list[dict[str, Any]], totals: dict[str, Any]) -> dict[str, Any]:
    """What is worth knowing of clips that are kept."""
    found: dict[str, Any] = {}
    for record in records:
        for kind, remark in record["remarks"].items():
            total = found.setdefault(kind, {"clips": 0, "examples": []})
            total["clips"] += remark["clips"]
            total["examples"] = (total["examples"] + remark["examples"])[:MAX_EXAMPLES]
    duplicates = _duplicates(folder, records, list(totals))
    return {**found, "duplicate_audio": duplicates} if duplicates else found


def _duplicates(folder: str, records: list[dict[str, Any]], splits: list[str]) -> dict[str, Any] | None:
    """Clips whose samples are those of an earlier clip."""
    parts = {split: [record["splits"][split]["fingerprints"] for record in records if split in record["splits"]]
             for split in splits}
    fingerprints = np.concatenate([part for split in splits for part in parts[split]])
    _, first, inverse = np.unique(fingerprints, return_index=True, return_inverse=True)
    repeated = np.flatnonzero(first[inverse] != np.arange(len(fingerprints)))
    if not len(repeated):
        return None
    num_train = sum(map(len, parts["train"]))
    ids = datasets.concatenate_datasets([datasets.load_from_disk(unfinished_path(folder, split)) for split in splits])
    across = (repeated >= num_train) & (first[inverse[repeated]] < num_train)
    return {"clips": len(repeated), "across_splits": int(across.sum()),
            "examples": [[ids["utterance_id"][int(each)] for each in (first[inverse[place]], place)]
                         for place in repeated[:MAX_EXAMPLES]]}
