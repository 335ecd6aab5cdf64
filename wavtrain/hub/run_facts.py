"""run.json of a run: what it hears, what it began from, how it was launched; what its other files do not say."""

import json
import logging
import math
import os
import re
import sys
from importlib.metadata import version
from typing import Any

import datasets
from huggingface_hub import hf_hub_download, metadata_load

from wavtrain import InputError, __version__
from wavtrain.durable_files import read_json, write_json
from wavtrain.hub.card_text import CARD
from wavtrain.hub.named_speech import named_speech, speech_text, without_path
from wavtrain.hub.repository import OF_THE_HUB, is_hub_id
from wavtrain.speech.prepared_directory import PreparedSpeech
from wavtrain.speech.waveforms import SAMPLING_RATE

FACTS = "run.json"
PACKAGES = ("torch", "transformers", "accelerate", "datasets")
HUB_DATASET = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
MOST_ORIGINS = 9  # a chain of models that each went on from the last
logger = logging.getLogger(__name__)


def write_facts(output_dir: str, arguments: dict[str, Any], prepared: PreparedSpeech, heard: dict[str, datasets.Dataset],
                checkpoint: str | None, launched: dict[str, Any]) -> None:
    """At the start of a run, which hears these clips, or as it goes on from a checkpoint."""
    report, resumed = prepared.report, _read(_run_of(checkpoint)) if checkpoint else {}
    base = arguments.get("init_from") if "init_from" in arguments else arguments.get("model_name_or_path")
    parts = {part: {**named_speech(report, part), **_counts(clips), "num_prepared": report["splits"][part]["clips"]}
             for part, clips in heard.items()}
    corpora = [each for part in parts.values() for each in part["corpora"]]
    of_origin = {"base_model": base if base and is_hub_id(base) else None,
                 "origins": _origins(base, arguments.get("cache_dir")) if base else []}
    of_origin |= _origin_of(resumed)  # whatever its flags name now, it began where it began
    scores = _read(output_dir).get("scores")
    write_json(os.path.join(output_dir, FACTS), {
        "parts": parts, "rejected": report["rejected"],
        "languages": sorted(filter(None, prepared.load("train").unique("language"))),
        "hub_datasets": sorted({each["name"] for each in corpora if each["is_on_hub"]}), **of_origin, **launched,
        "versions": {"wavtrain": __version__, **{name: version(name) for name in PACKAGES},
                     "python": ".".join(map(str, sys.version_info[:3]))},
        "repository": None, "scores": scores if isinstance(scores, list) else []}, indent=1)


def read_facts(output_dir: str) -> dict[str, Any]:
    """Of a run that is there."""
    facts = _read(output_dir)
    if not facts or not os.path.isfile(os.path.join(output_dir, "arguments.yaml")):
        raise InputError(f"{output_dir}: has no {FACTS} and arguments.yaml, so it is no --output_dir of a training script")
    if "parts" not in facts:
        raise InputError(f"{output_dir}: its {FACTS} is of an older version: the run's command with --resume_from_checkpoint "
                         "latest writes it anew")
    return facts


def _read(folder: str) -> dict[str, Any]:
    try:
        facts = read_json(os.path.join(folder, FACTS))
        json.dumps(facts, allow_nan=False)  # as it is written again
    except (OSError, ValueError):  # damaged: it is written anew
        facts = None
    return facts if isinstance(facts, dict) else {}


def _origin_of(resumed: dict[str, Any]) -> dict[str, Any]:
    """As its run.json says, if it says it well: it may be a stranger's."""
    try:
        base, origins = resumed["base_model"], [_checked(each) for each in resumed["origins"]]
    except (KeyError, TypeError, ValueError):
        return {}
    return {"base_model": base and str(base)[:300], "origins": origins}


def _run_of(model: str) -> str:
    """The output directory that a checkpoint lies in; other folders as they are."""
    parent = os.path.dirname(os.path.abspath(model))
    return os.path.dirname(parent) if os.path.basename(parent) == "checkpoints" else model


def _counts(clips: datasets.Dataset) -> dict[str, Any]:
    speakers = clips.select_columns(["speaker"]).unique("speaker")
    samples = clips.select_columns(["num_samples"]).with_format("numpy")[:]["num_samples"]
    return {"clips": len(clips), "hours": round(float(samples.sum()) / SAMPLING_RATE / 3600, 6),
            "num_speakers": len(set(speakers) - {None}), "has_unknown_speakers": None in speakers}


def _origins(base: str, cache_dir: str | None) -> list[dict[str, Any]]:
    """The model that a run begins from and those before it, the nearest first: on what each was trained, as far as it tells."""
    origin = {"name": without_path(_run_of(base)), "speech": None, "hours": None, "hub_datasets": [], "is_told_by": None}
    for name, read in ((FACTS, _told_by_facts), (CARD, _told_by_card)):
        try:
            if (path := _file_of(base, name, cache_dir)) and (told := read(path, origin)):
                return told
        except Exception as error:  # whatever others have put there, a run does not end for what its card is to say
            logger.warning("note: %s: its %s does not say what it was trained on (%s)", base, name, type(error).__name__)
    return [origin]


def _told_by_facts(path: str, origin: dict[str, Any]) -> list[dict[str, Any]]:
    facts = read_json(path)
    train = facts["parts"]["train"]
    own = {**origin, "speech": speech_text(train), "hours": train["hours"], "hub_datasets": facts["hub_datasets"],
           "is_told_by": FACTS}
    return [_checked(each) for each in (own, *facts["origins"][:MOST_ORIGINS])]


def _told_by_card(path: str, origin: dict[str, Any]) -> list[dict[str, Any]]:
    named = (metadata_load(path) or {}).get("datasets") or []
    named = [named] if isinstance(named, str) else named
    return [_checked({**origin, "speech": ", ".join(named), "hub_datasets": named, "is_told_by": "its card"})] if named else []


def _checked(origin: dict[str, Any]) -> dict[str, Any]:
    """Texts of a sensible length, a number, names that the Hub takes."""
    texts = {name: origin[name] and str(origin[name])[:300] for name in ("name", "speech", "is_told_by")}
    size = float(origin["hours"] or 0)
    named = [str(each) for each in origin["hub_datasets"] if HUB_DATASET.fullmatch(str(each))]
    return {**texts, "hours": size if 0 < size < math.inf else None, "hub_datasets": named[:100]}


def _file_of(model: str, name: str, cache_dir: str | None) -> str | None:
    if os.path.exists(model):
        path = os.path.join(_run_of(model), name)
        return path if os.path.isfile(path) else None
    try:
        return hf_hub_download(model, name, cache_dir=cache_dir)
    except OF_THE_HUB:  # it has none, or cannot be asked now
        return None
