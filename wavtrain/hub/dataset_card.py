"""A prepared directory on the Hub: its card, and what of it is pushed.

The repository is the prepared directory itself but for the names of files that were left out: `datasets.load_dataset` reads
its Arrow files as the card says, and a downloaded copy is a prepared directory again.
"""

import os
from typing import Any

from huggingface_hub import DatasetCardData

from wavtrain import InputError
from wavtrain.hub.card_text import CARD, hours, languages_for_the_hub, shown, signed, table, write_card
from wavtrain.hub.repository import Repository, name_of
from wavtrain.hub.uploads import Uploads, linked
from wavtrain.speech.prepared_directory import SPLITS, PreparedSpeech

STAGE = ".pushed.part"
COLUMNS = {
    "utterance_id": ("string", "of the corpus it came from"),
    "audio": ({"audio": {"sampling_rate": 16_000}}, "FLAC, one channel, 16 kHz"),
    "num_samples": ("int64", "of the audio"),
    "text": ("string", "transcript, where there is one"),
    "speaker": ("string", "where it is known"),
    "language": ("string", "where it is known"),
    "corpus": ("string", "which it came from"),
}
SIZES = (("n<1K", 1e3), ("1K<n<10K", 1e4), ("10K<n<100K", 1e5), ("100K<n<1M", 1e6), ("1M<n<10M", 1e7), ("10M<n<100M", 1e8))


class NotPushedError(InputError):
    """What was asked for could not be done now, and may be later."""

    exit_code = 1


def push_prepared(prepared: PreparedSpeech, repository: Repository, licence: str | None) -> str:
    """The directory to the Hub, in one commit. Returns where it is."""
    splits = [prepared.load(split) for split in prepared.report["splits"]]
    languages = sorted({language for split in splits for language in split.unique("language") if language})
    has_text = any(split.data.column("text").null_count < len(split) for split in splits)
    write_card(prepared.folder, dataset_card(prepared.report, repository.name, languages, has_text, licence))
    uploads = Uploads(repository, os.path.join(prepared.folder, STAGE))
    uploads.begin("prepared speech", lambda folder: _fill(prepared, folder))
    outcome = uploads.outcome()
    if outcome["fault"]:
        raise NotPushedError(f"--push_to_hub {repository.name}: {outcome['fault']}; {prepared.folder} is whole, and the same "
                             "command pushes it")
    for note in outcome["notes"]:
        print(f"note: {note}")
    return outcome["url"]


def _fill(prepared: PreparedSpeech, folder: str) -> None:
    for split in (each for each in SPLITS if each in prepared.report["splits"]):
        os.mkdir(os.path.join(folder, split))
        for name in os.listdir(os.path.join(prepared.folder, split)):
            linked(os.path.join(prepared.folder, split, name), os.path.join(folder, split, name))
    for name in (CARD, "preparation.json"):
        linked(os.path.join(prepared.folder, name), os.path.join(folder, name))


def dataset_card(report: dict[str, Any], name: str, languages: list[str], has_text: bool, licence: str | None) -> str:
    """The text of README.md; `report` is preparation.json."""
    splits, clips = report["splits"], sum(split["clips"] for split in report["splits"].values())
    metadata = DatasetCardData(
        license=licence, language=languages_for_the_hub(languages),
        task_categories=["automatic-speech-recognition"] if has_text else None,
        size_categories=next((size for size, limit in SIZES if clips < limit), None), tags=["audio", "speech", "wavtrain"],
        configs=[{"config_name": "default", "data_files": [{"split": split, "path": f"{split}/*.arrow"} for split in splits]}],
        dataset_info={"features": [{"name": column, "dtype": kind} for column, (kind, _) in COLUMNS.items()]})
    left_out = [(shown(reason), f"{of['clips']:,}", hours(of["hours"])) for reason, of in report["rejected"].items()]
    limits = report["arguments"]
    sizes = [(split, f"{of['clips']:,}", hours(of["hours"])) for split, of in splits.items()]
    total = hours(sum(of["hours"] for of in splits.values()))
    held_out = "" if "validation" not in splits else " --validation_split_names validation"
    return signed(metadata, [
        f"# {shown(name_of(name))}", "",
        f"Speech prepared by wavtrain: {clips:,} clips, {total} hours, every one decoded and checked, one channel, 16 kHz.", "",
        *table(("split", "clips", "hours"), sizes), "",
        f"- Corpora: {', '.join(sorted({shown(source['corpus']) for source in report['sources']}))}",
        f"- Languages: {', '.join(map(shown, languages)) or 'not known'}",
        f"- Licence: {licence or 'not known'}",
        f"- Clips of {limits['min_duration_in_seconds']:g} to {limits['max_duration_in_seconds']:g} s; longer recordings: "
        f"`--long_audio {limits['long_audio']}`", "",
        "## What was left out", "", *(table(("reason", "clips", "hours"), left_out) if left_out else ["Nothing."]), "",
        "## Columns", "", *table(("column", "holds"), [(f"`{column}`", what) for column, (_, what) in COLUMNS.items()]), "",
        "## How to use it", "", "```python", "from datasets import load_dataset", f'speech = load_dataset("{name}")', "```", "",
        "```", f"accelerate launch run_wav2vec2_pretraining_no_trainer.py --dataset_name {name}{held_out} ...", "```"])
