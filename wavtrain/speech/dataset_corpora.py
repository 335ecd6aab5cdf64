"""What the `datasets` library reads -> rows: a Hub id, parquet and arrow folders, save_to_disk; whole or as a stream.

Audio is never decoded by `datasets` (that would take FFmpeg): the encoded bytes are handed on as they are.
"""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import huggingface_hub
import huggingface_hub.errors
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from datasets.exceptions import DatasetGenerationError

from wavtrain import InputError
from wavtrain.speech.audio_paths import AudioRoot, refuse_outside
from wavtrain.speech.rows import Columns, Rejection, Row, Source, corpus_name, row_of_file
from wavtrain.speech.unfolding import refuse_bombs

BATCH_ROWS = 100
# What goes wrong on the way to a dataset; the last is the HTTP client's own, whichever the installed version uses.
OF_THE_HUB = (DatasetGenerationError, OSError, ValueError, RuntimeError, AttributeError, LookupError, TypeError, yaml.YAMLError,
              huggingface_hub.errors.HfHubHTTPError.__bases__[0])
DATASET_ENDINGS = (".parquet", ".arrow")


@dataclass(frozen=True)
class _Table:
    """A dataset with its columns settled and its audio left encoded."""

    data: Any  # datasets.Dataset or IterableDataset
    columns: Columns
    name: str  # for people: dataset/config/split
    root: AudioRoot | None  # of audio that is a path
    label: str  # begins the ids of rows without a name: the same wherever the dataset lies

    def row(self, index: int, record: dict[str, Any], audio: Any) -> Row | Rejection:
        """The row of one record whose audio is a path, bytes, an index, or a struct of path and bytes."""
        source = f"{self.name}[{index}]"
        path = audio.get("path") if isinstance(audio, dict) else audio if isinstance(audio, str) else None
        audio = audio.get("bytes") if isinstance(audio, dict) else audio
        audio = None if audio == b"" else audio
        known = {role: str(value) for role in ("text", "speaker", "language")
                 if (value := record.get(getattr(self.columns, role))) is not None}
        name = record.get(self.columns.id)
        name = str(name) if name is not None else None
        if isinstance(audio, (bytes, int)):
            given = os.path.basename(path) if path else f"{self.label}-{index:08d}"
            num_bytes = record.get("num_bytes") or len(audio)
            return Row(f"{source} {path or ''}".strip(), audio, name or given, num_bytes=num_bytes, **known)
        if not path:
            return Rejection(source, "malformed_row", f"its {self.columns.audio!r} holds neither bytes nor a path")
        found = self.root.resolve(path) if self.root else None
        if found is None:
            return Rejection(source, "outside_folder", f"{path} leads outside the corpus; --audio_root allows a folder")
        return row_of_file(found, self.root.folder, utterance_id=name, where=source, **known)

    def rows(self) -> Iterator[Row | Rejection]:
        """Of a dataset on disk: the audio stays there, rows hold its index."""
        used = [name for name in vars(self.columns).values() if name]
        index = 0
        for batch in self.data.select_columns(used).with_format("arrow").iter(BATCH_ROWS):
            known = (told for chunk in batch[self.columns.audio].chunks for told in _paths_and_sizes(chunk))
            for record, (path, size) in zip(batch.drop_columns([self.columns.audio]).to_pylist(), known, strict=True):
                yield self.row(index, {**record, "num_bytes": size}, {"path": path, "bytes": index if size else None})
                index += 1

    def streamed(self) -> Iterator[Row | Rejection]:
        """Of a stream: rows hold the bytes themselves."""
        try:
            for index, record in enumerate(self.data):
                audio = record[self.columns.audio]
                yield self.row(index, record, audio if isinstance(audio, (dict, str, bytes)) else None)
        except OF_THE_HUB as error:
            raise InputError(f"{self.name}: the stream broke off: {_in_one_line(error)}; what is finished is kept") from error

    def read_audio(self, index: int) -> bytes:
        """The encoded audio of a row."""
        audio = self.data.with_format("arrow")[index][self.columns.audio][0].as_py()
        return audio["bytes"] if isinstance(audio, dict) else audio


def _paths_and_sizes(audio: pa.Array) -> Iterator[tuple[str | None, int | None]]:
    """Of a chunk of an audio column, without a look at the audio: that may be all there is in memory."""
    fields = [field.name for field in audio.type] if pa.types.is_struct(audio.type) else []
    content = audio.field("bytes") if "bytes" in fields else audio
    paths = audio.field("path") if "path" in fields else audio
    is_path = pa.types.is_string(paths.type) or pa.types.is_large_string(paths.type)
    paths = paths.to_pylist() if is_path else [None] * len(audio)
    holds_bytes = pa.types.is_binary(content.type) or pa.types.is_large_binary(content.type) or pa.types.is_fixed_size_binary(
        content.type)
    sizes = pc.binary_length(content).to_pylist() if holds_bytes else [None] * len(audio)
    return zip(paths, sizes, strict=True)


def sources_of_dataset(
    name: str, config: str | None, split: str | None, columns: Columns, *,
    streaming: bool = False, cache_dir: str | None = None, audio_root: str | None = None, corpus: str | None = None,
) -> Iterator[Source]:
    """One source for a dataset on disk, one for each file of a stream (so that a resumed stream skips what is done)."""
    corpus = corpus or corpus_name(name)
    beyond = [part for part in (config, split) if part not in (None, "default", "train")]
    place, label = "/".join([name, *beyond]), "/".join([corpus, *beyond])
    refuse_bombs(name)
    data, signature = _loaded(name, config, split, streaming, cache_dir, audio_root)
    columns = _settled(data, columns, place)
    if isinstance(data.features.get(columns.audio) if data.features else None, datasets.Audio):
        data = data.cast_column(columns.audio, datasets.Audio(decode=False))
    folder = audio_root or (name if os.path.isdir(name) else None)
    table = _Table(data, columns, place, AudioRoot(folder) if folder else None, label)
    if not isinstance(data, datasets.IterableDataset):
        yield Source(corpus, place, table.rows, "train", f"{signature}-{columns}", len(data), table.read_audio)
        return
    for number in range(data.num_shards):
        part = _Table(data.shard(data.num_shards, number), columns, f"{place}#{number}", table.root, f"{label}#{number}")
        yield Source(corpus, part.name, part.streamed, signature=f"{signature}-{split}-{columns}-{number}-of-{data.num_shards}")


def downloaded_folder(name: str, config: str | None, cache_dir: str | None) -> str | None:
    """A local copy of a Hub dataset that is a folder of audio files; None for one that `datasets` reads itself."""
    kind = _builder(name, config, cache_dir).name
    if kind not in ("audiofolder", "parquet", "arrow"):
        raise InputError(f"--dataset_name {name}: consists of {kind} files; parquet, arrow or audio files are read")
    if kind != "audiofolder":
        return None
    folder = os.path.join(cache_dir or os.path.join(datasets.config.HF_CACHE_HOME, "wavtrain"), "hub", *name.split("/"))
    try:
        return huggingface_hub.snapshot_download(name, repo_type="dataset", local_dir=folder)
    except OF_THE_HUB as error:
        raise InputError(f"--dataset_name {name}: {_in_one_line(error)}") from error


def _builder(name: str, config: str | None, cache_dir: str | None) -> Any:
    try:
        return datasets.load_dataset_builder(name, config, cache_dir=cache_dir)
    except OF_THE_HUB as error:
        place = "" if os.path.exists(name) else " (no such path, so taken for a Hub id)"
        raise InputError(f"--dataset_name {name}{place}: {_in_one_line(error)}") from error


def _in_one_line(error: BaseException) -> str:
    text = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
    return text if len(text) < 200 else f"{text[:200]}..."


def _settled(data: Any, columns: Columns, place: str) -> Columns:
    """The column of type Audio counts before any known name."""
    names = list(data.features or next(iter(data), {}))
    typed = [name for name, kind in (data.features or {}).items() if isinstance(kind, datasets.Audio)]
    if columns.audio is None and typed:
        columns = Columns(**{**vars(columns), "audio": typed[0]})
    return columns.among(names, place)


def _loaded(
    name: str, config: str | None, split: str | None, streaming: bool, cache_dir: str | None, audio_root: str | None
) -> tuple[Any, str]:
    """The dataset or stream, and what changes with its content; what `datasets` has to say against it becomes one line."""
    if os.path.isfile(os.path.join(name, "state.json")) or os.path.isfile(os.path.join(name, "dataset_dict.json")):
        data = _from_disk(name, split)
        refuse_outside((each["filename"] for each in data.cache_files), name, audio_root)
        return data, data._fingerprint
    builder = _builder(name, config, cache_dir)
    try:
        if os.path.isdir(name) and builder.name not in ("parquet", "arrow"):
            raise InputError(f"--dataset_name {name}: holds parquet or arrow files beside others ({builder.name}): give the "
                             "folder of those that count")
        if os.path.isdir(name):
            refuse_outside((path for paths in builder.config.data_files.values() for path in paths), name, audio_root)
        if streaming and builder.name not in ("parquet", "arrow"):
            raise InputError(f"--streaming: {name} consists of {builder.name} files; only parquet and arrow are streamed")
        if streaming:
            return builder.as_streaming_dataset(split=split or "train"), builder.hash
        data = datasets.load_dataset(name, config, split=split or "train", cache_dir=cache_dir)
        return data, data._fingerprint
    except OF_THE_HUB as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        place = " ".join(part for part in (name, config, split) if part)
        raise InputError(f"--dataset_name {place}: {_in_one_line(error)}") from error


def _from_disk(folder: str, split: str | None) -> Any:
    try:
        data = datasets.load_from_disk(folder)
    except OF_THE_HUB as error:
        raise InputError(f"--dataset_name {folder}: is damaged ({_in_one_line(error)})") from error
    if isinstance(data, datasets.Dataset):
        if split not in (None, "train"):
            raise InputError(f"--dataset_split_names {split}: {folder} is one dataset, which is not divided into splits")
        return data
    wanted = split or ("train" if "train" in data else next(iter(data)) if len(data) == 1 else None)
    if wanted not in data:
        raise InputError(f"--dataset_split_names{f' {split}' if split else ''}: {folder} has {', '.join(data)}")
    return data[wanted]
