"""Folders -> rows: audio beside metadata.csv or .jsonl (audiofolder), LibriSpeech's tree with .trans.txt, or just audio.

Every audio file below the folder becomes a row or a rejection; hidden files and folders are not looked at.
"""

import os
import re
from collections.abc import Iterator

from wavtrain import InputError
from wavtrain.speech.audio_paths import AudioRoot, real_folder, real_place, refuse_outside
from wavtrain.speech.rows import Columns, Rejection, Row, printable, row_of_file
from wavtrain.speech.table_corpora import rows_of_table
from wavtrain.speech.tables import read_lines

METADATA = ("metadata.csv", "metadata.tsv", "metadata.jsonl")
# Read by libsndfile, or known to be audio that it does not read, so that such files are named and not passed over.
AUDIO_ENDINGS = tuple(
    ".aif .aifc .aiff .au .caf .flac .mp1 .mp2 .mp3 .nist .oga .ogg .opus .rf64 .snd .sph .w64 .wav .wave .wv"
    " .3gp .aac .ac3 .amr .ape .m4a .m4b .mka .mkv .mov .mp4 .ra .shn .webm .wma".split()
)
OTHER_ENDINGS = tuple(
    ".bin .cfg .csv .doc .docx .gz .htm .html .jpg .jpeg .json .jsonl .lab .log .md .npy .npz .parquet .pdf .png .pt .py"
    " .rst .srt .tar .textgrid .toml .tsv .txt .vtt .xml .yaml .yml .zip".split()
)
MAGIC = re.compile(rb"(RIFF|RF64)....WAVE|FORM....AIF|fLaC|OggS|ID3|NIST_1A|\.snd|caff|\xff[\xfb\xf3\xf2]", re.DOTALL)


def rows_of_folder(folder: str, corpus_folder: str, columns: Columns, audio_root: str | None) -> Iterator[Row | Rejection]:
    """The rows of a folder that is, or lies in, `corpus_folder`, sorted by path."""
    table = _metadata_above(folder, corpus_folder)
    allowed = AudioRoot(audio_root or corpus_folder)
    if table:
        yield from _rows_of_audiofolder(folder, table, None, columns, allowed, audio_root)
    else:
        yield from _rows_below(folder, corpus_folder, columns, allowed, audio_root)


def rows_of_audio(path: str) -> Iterator[Row | Rejection]:
    """A recording by itself; its path is its id."""
    yield row_of_file(path, "", utterance_id=printable(path))


def _metadata_in(folder: str) -> str | None:
    found = [path for name in METADATA if os.path.isfile(path := os.path.join(folder, name))]
    if len(found) > 1:
        raise InputError(f"{folder}: holds {' and '.join(map(os.path.basename, found))}: keep the one that counts")
    return found[0] if found else None


def _metadata_above(folder: str, corpus_folder: str) -> str | None:
    """The metadata table of the nearest folder, from `folder` up to `corpus_folder`."""
    while True:
        table = _metadata_in(folder)
        if table or os.path.samefile(folder, corpus_folder):
            return table
        folder = os.path.dirname(folder)


def _rows_of_audiofolder(
    folder: str, table: str, names_from: str | None, columns: Columns, allowed: AudioRoot, audio_root: str | None
) -> Iterator[Row | Rejection]:
    """The table's rows that lie in `folder` or in no file at all, then the audio there that it does not name."""
    refuse_outside([table], os.path.dirname(table) or ".", allowed.folder)
    named = set()
    inside = os.path.join(real_folder(folder), "")
    has_all = os.path.samefile(os.path.dirname(table) or ".", folder)
    for row in rows_of_table(table, columns, audio_root, names_from):
        place = real_place(row.source)
        is_of_no_file = isinstance(row, Rejection) and (
            row.reason == "outside_folder" or row.source.startswith(f"{table} line "))
        if has_all or is_of_no_file or place.startswith(inside):
            named.add(place)
            yield row
    for path in _walk(folder, allowed):
        if isinstance(path, Rejection):
            yield path
        elif real_place(path) not in named and not _has_own_metadata(path, folder):
            yield Rejection(path, "not_in_table", f"{table} does not name it")
    for other in _nested_metadata(folder):
        yield from _rows_of_audiofolder(os.path.dirname(other), other, names_from or folder, columns, allowed, audio_root)


def _has_own_metadata(path: str, folder: str) -> bool:
    """Whether a folder between the file and `folder` holds a metadata table."""
    parent = os.path.dirname(path)
    return not os.path.samefile(parent, folder) and (_metadata_in(parent) is not None or _has_own_metadata(parent, folder))


def _nested_metadata(folder: str) -> list[str]:
    """The nearest metadata tables of the folders below."""
    found = []
    for parent, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        table = _metadata_in(parent) if parent != folder else None
        if table:
            found.append(table)
            folders.clear()
    return found


def _rows_below(
    folder: str, corpus_folder: str, columns: Columns, allowed: AudioRoot, audio_root: str | None
) -> Iterator[Row | Rejection]:
    """Folders with tables of their own, transcripts, or nothing but audio, side by side."""
    tables = _nested_metadata(folder)
    owned = tuple(os.path.join(os.path.dirname(table), "") for table in tables)
    for table in tables:
        yield from _rows_of_audiofolder(os.path.dirname(table), table, folder, columns, allowed, audio_root)
    texts: dict[str, tuple[str, str]] = {}
    texts_of = None
    heard = set()
    for path in _walk(folder, allowed):
        if isinstance(path, Rejection):
            yield path
            continue
        if path.startswith(owned):
            continue
        parent = os.path.dirname(path)
        if parent != texts_of:
            yield from _untold(texts)
            texts, texts_of = _transcripts_in(parent, allowed), parent
            heard.add(parent)
        yield _row_of_audio(path, corpus_folder, texts)
    yield from _untold(texts)
    for parent, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if parent not in heard and not os.path.join(parent, "").startswith(owned):
            yield from _untold(_transcripts_in(parent, allowed))


def _row_of_audio(path: str, corpus_folder: str, texts: dict[str, tuple[str, str]]) -> Row | Rejection:
    stem = os.path.splitext(os.path.basename(path))[0]
    if stem not in texts:
        return row_of_file(path, corpus_folder)
    text, where = texts.pop(stem)
    return row_of_file(path, corpus_folder, utterance_id=stem, text=text, speaker=stem.split("-")[0], where=where)


def _transcripts_in(folder: str, allowed: AudioRoot) -> dict[str, tuple[str, str]]:
    """LibriSpeech: `ID WORDS ...` in *.trans.txt beside the audio."""
    texts = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".trans.txt"):
            path = os.path.join(folder, name)
            refuse_outside([path], folder, allowed.folder)
            for number, line in read_lines(path):
                utterance_id, _, text = line.strip().partition(" ")
                if texts.get(utterance_id, (text,))[0] != text:
                    raise InputError(f"{path} line {number}: {utterance_id} has another transcript already")
                if utterance_id:
                    texts[utterance_id] = (text, f"{path} line {number}")
    return texts


def _untold(texts: dict[str, tuple[str, str]]) -> Iterator[Rejection]:
    """Transcripts whose audio is not there."""
    for utterance_id, (_, where) in texts.items():
        yield Rejection(utterance_id, "missing_file", f"{where}: no audio file of this name beside it")


def _walk(folder: str, allowed: AudioRoot) -> Iterator[str | Rejection]:
    """Audio files below a folder in a fixed order; links that lead outside are named, links to folders not followed."""
    for parent, folders, files in os.walk(folder, onerror=_stop):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if os.path.islink(path := os.path.join(parent, name)):
                yield Rejection(path, "outside_folder", "links to folders are not followed: give its target as a corpus too")
        for name in sorted(files):
            path = os.path.join(parent, name)
            if name.startswith(".") or not is_audio(path):
                continue
            inside = not os.path.islink(path) or allowed.resolve(os.path.relpath(path, allowed.folder)) is not None
            yield path if inside else Rejection(
                path, "outside_folder", f"a link that {allowed.refusal}"
            )


def _stop(error: OSError) -> None:
    raise InputError(f"{error.filename}: {error.strerror}")


def is_audio(path: str) -> bool:
    """By its ending; a file whose ending says nothing, by its first bytes."""
    ending = os.path.splitext(path)[1].lower()
    if ending in AUDIO_ENDINGS or ending in OTHER_ENDINGS:
        return ending in AUDIO_ENDINGS
    if not os.path.isfile(path):  # opening a pipe would wait for ever
        return False
    try:
        with open(path, "rb") as file:
            return MAGIC.match(file.read(12)) is not None
    except OSError:
        return False
