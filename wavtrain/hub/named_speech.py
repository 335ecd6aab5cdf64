"""Which speech it was, by the names under which it was asked for: what scores and cards say of it, wherever it lay."""

import os
from typing import Any

import xxhash

from wavtrain.hub.repository import is_hub_id, name_of
from wavtrain.speech.rows import corpus_name
from wavtrain.speech.tables import ENDINGS


def named_speech(report: dict[str, Any], part: str) -> dict[str, Any]:
    """The corpora of a part of prepared speech, each with its configuration and split; `report` is preparation.json."""
    asked, percentage = report.get("asked_for", {}), report["arguments"]["validation_split_percentage"]
    source = "validation" if part == "validation" and not percentage else "train"  # a share is held out of what is trained on
    splits = asked.get("validation_split_names" if source == "validation" else "dataset_split_names")
    names = asked.get("dataset_name") or sorted({each["corpus"] for each in report["sources"]})
    of_datasets = {each["corpus"] for each in report["sources"] if each["bytes"] is None}
    lists = [names, asked.get("dataset_config_names") or [None], splits or [None]]
    length = max(map(len, lists))
    rows = dict.fromkeys(zip(*(list(values) * (length // len(values)) for values in lists), strict=True))
    share = None
    if percentage and "validation" in report["splits"]:
        share = f"{'the' if part == 'validation' else 'all but the'} {percentage:g} % held out"
    corpora = [{**_named(name, of_datasets), "config": config, "split": split} for name, config, split in rows]
    told = "".join(each["fingerprint"] for each in report["sources"] if each["split"] == source)
    return {"corpora": corpora, "share": share, "fingerprint": xxhash.xxh3_128_hexdigest(told.encode())}


def _named(name: str, of_datasets: set[str]) -> dict[str, Any]:
    """In full if it is of the Hub; of a path here what others can know: a folder's name, a table's with its folder."""
    if is_hub_id(name) and name_of(name) in of_datasets:
        return {"name": name, "is_on_hub": True}
    path = os.path.abspath(name)
    folder = f"{corpus_name(os.path.dirname(path))}/" if name.lower().endswith(ENDINGS) else ""
    return {"name": folder + corpus_name(path), "is_on_hub": False}


def speech_text(speech: dict[str, Any]) -> str:
    """In a line."""
    named = "; ".join(", ".join(filter(None, (each["name"], each["config"], each["split"]))) for each in speech["corpora"])
    return f"{named} ({speech['share']})" if speech["share"] else named


def without_path(name: str) -> str:
    """A Hub id in full, of a path its last name."""
    return name if is_hub_id(name) or os.sep not in name.strip(os.sep) else name_of(name)
