"""Any corpus -> sources of rows: decides what a name stands for (Hub id, folder, manifest file) and which splits it has."""

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from wavtrain import InputError
from wavtrain.speech.audio_paths import refuse_outside
from wavtrain.speech.dataset_corpora import DATASET_ENDINGS, downloaded_folder, sources_of_dataset
from wavtrain.speech.folder_corpora import METADATA, is_audio, rows_of_audio, rows_of_folder
from wavtrain.speech.rows import Columns, Source, corpus_name
from wavtrain.speech.shard_checksums import refuse_damaged_parts
from wavtrain.speech.table_corpora import rows_of_table
from wavtrain.speech.tables import ENDINGS

SPLITS = {"train": ("training", "train"), "validation": ("validation", "valid", "val", "dev"),
          "test": ("testing", "test", "evaluation", "eval")}
logger = logging.getLogger(__name__)
DATASET_MARKS = ("state.json", "dataset_dict.json")


@dataclass(frozen=True)
class CorpusOptions:
    """Which speech: the flags of the same names. Lists pair up by position; a list of one goes with all."""

    dataset_name: tuple[str, ...]
    dataset_config_names: tuple[str, ...] = ()
    dataset_split_names: tuple[str, ...] = ()
    validation_split_names: tuple[str, ...] = ()
    audio_column_name: str | None = None
    text_column_name: str | None = None
    speaker_column_name: str | None = None
    language_column_name: str | None = None
    id_column_name: str | None = None
    audio_root: str | None = None
    streaming: bool = False

    @property
    def columns(self) -> Columns:
        return Columns(*(getattr(self, f"{role}_column_name") for role in ("audio", "text", "speaker", "language", "id")))


def open_corpora(options: CorpusOptions, cache_dir: str | None = None) -> list[Source]:
    """Every source of every corpus asked for, in the order of the flags, the held-out ones last."""
    if not all(options.dataset_name):
        raise InputError("--dataset_name: an empty name")
    if options.audio_root and not os.path.isdir(options.audio_root):
        raise InputError(f"--audio_root {options.audio_root}: no such folder")
    wanted = [(triple, "train") for triple in _paired(options, "dataset_split_names")]
    if options.validation_split_names:
        wanted += [(triple, "validation") for triple in dict.fromkeys(_paired(options, "validation_split_names"))]
    twice = [triple for triple, _ in wanted if [other for other, _ in wanted].count(triple) > 1]
    if twice:
        raise InputError(f"--dataset_name: {' '.join(filter(None, twice[0]))} is asked for twice")
    sources = []
    for (name, config, split), part in wanted:
        for source in _sources_of(name, config, split, options, cache_dir):
            sources.append(Source(**{**vars(source), "split": part}))
    places = [os.path.realpath(source.description) for source in sources]
    again = next((source for source, place in zip(sources, places, strict=True) if places.count(place) > 1), None)
    if again:
        raise InputError(f"--dataset_name: {again.description} is asked for twice")
    return sources


def _paired(options: CorpusOptions, splits: str) -> list[tuple[str, str | None, str | None]]:
    """(name, config, split) of each corpus."""
    lists = {name: getattr(options, name) or (None,) for name in ("dataset_name", "dataset_config_names", splits)}
    length = max(map(len, lists.values()))
    for name, values in lists.items():
        if len(values) not in (1, length):
            raise InputError(f"--{name}: {len(values)} values do not pair with {length}; give one, or {length}")
    repeated = (values * (length // len(values)) for values in lists.values())
    return list(zip(*repeated, strict=True))


def _sources_of(
    name: str, config: str | None, split: str | None, options: CorpusOptions, cache_dir: str | None
) -> Iterator[Source]:
    name = os.path.expanduser(name)
    as_dataset = partial(sources_of_dataset, columns=options.columns, streaming=options.streaming, cache_dir=cache_dir,
                         audio_root=options.audio_root)
    if os.path.isfile(name):
        if split not in (None, "train", "all"):
            raise InputError(f"--dataset_split_names {split}: {name} is one file, which is not divided into splits")
        yield _source_of_file(name, options)
        return
    if not os.path.isdir(name):
        if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.lower().endswith(ENDINGS):
            raise InputError(f"--dataset_name {name}: no such file or folder")
        folder = None if options.streaming else downloaded_folder(name, config, cache_dir)
        if folder is None:
            yield from as_dataset(name, config, split)
            return
        name = folder
    if any(os.path.isfile(os.path.join(name, mark)) for mark in DATASET_MARKS):
        refuse_damaged_parts(name)
        yield from as_dataset(name, config, split)
        return
    corpus_folder = name
    if config and os.path.isdir(os.path.join(name, config)):
        name, config = os.path.join(name, config), None
    if config not in (None, "default") and not _holds_dataset_files(name):
        raise InputError(f"--dataset_config_names {config}: {name} has no folder of that name")
    if _holds_dataset_files(name):
        yield from as_dataset(name, config, split)
        return
    if options.streaming:
        raise InputError(f"--streaming: {name} is on this disk already and is not parquet: leave the flag out")
    places = _places_of_split(name, split)
    refuse_outside(places, corpus_folder, options.audio_root)
    for place in places:
        marked = os.path.isdir(place) and any(os.path.isfile(os.path.join(place, mark)) for mark in DATASET_MARKS)
        if marked:
            refuse_damaged_parts(place)
            yield from as_dataset(place, None, None, corpus=corpus_name(corpus_folder))
        else:
            yield _source_of_folder(place, corpus_folder, options) if os.path.isdir(place) else _source_of_file(place, options)


def _source_of_file(path: str, options: CorpusOptions) -> Source:
    corpus = corpus_name(os.path.dirname(os.path.abspath(path)))
    if is_audio(path):
        return Source(corpus, path, partial(rows_of_audio, path))
    if not path.lower().endswith(ENDINGS):
        raise InputError(f"--dataset_name {path}: neither audio nor a manifest, whose name ends in {', '.join(ENDINGS)}")
    return Source(corpus, path, partial(rows_of_table, path, options.columns, options.audio_root))


def _source_of_folder(folder: str, corpus_folder: str, options: CorpusOptions) -> Source:
    rows = partial(rows_of_folder, folder, corpus_folder, options.columns, options.audio_root)
    return Source(corpus_name(corpus_folder), folder, rows)


def _holds_dataset_files(folder: str) -> bool:
    """Whether parquet or arrow files lie in the folder or one below it (data/, or a folder for each configuration)."""
    folders = [folder] + [entry.path for entry in sorted(os.scandir(folder), key=lambda e: e.name)
                          if os.path.isdir(entry.path) and not entry.name.startswith(".")]
    if any(os.path.isfile(os.path.join(place, mark)) for place in folders for mark in DATASET_MARKS):
        return False
    return any(name.lower().endswith(DATASET_ENDINGS) for place in folders for name in os.listdir(place))


def _kind_of_split(name: str) -> str | None:
    """The split that a file or folder name speaks of: train-clean-100 -> train."""
    for kind, words in SPLITS.items():
        if re.match(rf"({'|'.join(words)})([-_. \d]|$)", name, re.IGNORECASE):
            return kind
    return None


def _places_of_split(folder: str, split: str | None) -> list[str]:
    """Folders and tables that make up a split of a local corpus; the folder itself where it is not divided."""
    places = _divisions(folder)
    if split not in places and not any(map(_kind_of_split, places)):
        places = _divisions(os.path.join(folder, "data")) or places
    named = {name: path for name, path in places.items() if _kind_of_split(name)}
    if split in places:
        return [places[split]]
    if not named:
        if split in (None, "train", "all"):
            if not any(os.path.isfile(os.path.join(folder, name)) for name in METADATA):
                for path in filter(os.path.isfile, places.values()):
                    logger.info("%s: not read; a table counts when it is called metadata.csv or given as --dataset_name", path)
            return [folder]
        raise InputError(f"--dataset_split_names {split}: {folder} is not divided into splits")
    kinds = {_kind_of_split(name) for name in named}
    only = "train" if "train" in kinds else next(iter(kinds)) if len(kinds) == 1 else None
    wanted = _kind_of_split(split) if split else only
    found = [path for name, path in named.items() if _kind_of_split(name) == wanted]
    # "dev" for a folder called validation, yes; "train-clean-100" for one called train-other-500, no
    if not found or (split and split.lower() not in sum(SPLITS.values(), ())):
        asked = f" {split}" if split else ""
        raise InputError(f"--dataset_split_names{asked}: {folder} has {', '.join(sorted(named))}")
    tables, folders = ([path for path in found if os.path.isdir(path) is kind] for kind in (False, True))
    if tables and folders:
        names = " and ".join(map(os.path.basename, (tables[0], folders[0])))
        raise InputError(f"{folder}: holds {names} for this split: name the one to read")
    return found


def _divisions(folder: str) -> dict[str, str]:
    """Tables and subfolders by name; a table goes before a folder of the same name, which it describes."""
    if not os.path.isdir(folder):
        return {}
    entries = sorted((entry for entry in os.scandir(folder) if not entry.name.startswith(".")), key=lambda e: e.name)
    divisions = {entry.name: entry.path for entry in entries if os.path.isdir(entry.path)}
    tables: dict[str, str] = {}
    for entry in entries:
        stem, ending = os.path.splitext(entry.name)
        if os.path.isfile(entry.path) and ending.lower() in ENDINGS and entry.name not in METADATA:
            if stem in tables and _kind_of_split(stem):
                raise InputError(f"{folder}: holds {os.path.basename(tables[stem])} and {entry.name}: name the one to read")
            tables[stem] = entry.path
    return {**divisions, **tables}
