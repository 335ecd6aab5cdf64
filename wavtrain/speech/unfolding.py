"""What the parquet and Arrow files of others promise to become in memory, told before any of it is unfolded."""

import os
import struct
from collections.abc import Iterator
from struct import unpack_from

import pyarrow as pa
import pyarrow.parquet

from wavtrain import InputError

ALLOWED_BYTES, ALLOWED_TIMES = 1 << 30, 100  # audio is packed already: none that is so large was so much smaller
MAGIC_OF_FILES = b"ARROW1\0\0"  # of Arrow files that are no stream; messages follow in both
HEADER, BATCH_OF_DICTIONARY, BUFFERS, COMPRESSION = 2, 1, 2, 3  # places of fields in the tables of Arrow's Message.fbs


def refuse_bombs(folder: str) -> None:
    """A few kilobytes may stand for gigabytes: of a column of a row group of parquet, of a record batch of Arrow."""
    for path in sorted(os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names):
        ending = os.path.splitext(path)[1]
        for packed, unfolded in _row_groups(path) if ending == ".parquet" else _batches(path) if ending == ".arrow" else ():
            if unfolded > max(ALLOWED_BYTES, ALLOWED_TIMES * packed):
                raise InputError(f"--dataset_name: {path}: {packed:,} bytes in it unfold to {unfolded:,}, as no speech does: "
                                 "leave the file out, or write it anew in smaller parts")


def _row_groups(path: str) -> Iterator[tuple[int, int]]:
    """Bytes packed and unfolded, as the footer has them."""
    try:
        footer = pyarrow.parquet.read_metadata(path)
    except (pa.ArrowException, OSError):
        return  # `datasets` says what is wrong with it
    for group in map(footer.row_group, range(footer.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            yield max(column.total_compressed_size, 0), column.total_uncompressed_size


def _batches(path: str) -> Iterator[tuple[int, int]]:
    """Of compressed ones. Arrow itself holds a buffer to the length that it promises, so no lie helps."""
    try:
        with pa.memory_map(path) as file:
            file.seek(len(MAGIC_OF_FILES) if file.read(len(MAGIC_OF_FILES)) == MAGIC_OF_FILES else 0)
            for message in pa.ipc.MessageReader.open_stream(file):
                if message.type in ("record batch", "dictionary batch"):
                    yield message.body.size, sum(_promised(message))
    except (pa.ArrowException, OSError, struct.error, TypeError, AttributeError):
        return  # likewise


def _promised(message: pa.Message) -> Iterator[int]:
    """The length of each buffer when it is unfolded, which stands before it."""
    header, body = memoryview(message.metadata), memoryview(message.body)
    batch = _field(header, *unpack_from("<I", header), HEADER)
    if message.type == "dictionary batch":
        batch = _field(header, batch, BATCH_OF_DICTIONARY)
    if _field(header, batch, COMPRESSION) is None:
        return
    buffers = _field(header, batch, BUFFERS)
    for number in range(*unpack_from("<I", header, buffers)):
        place, length = unpack_from("<qq", header, buffers + 4 + 16 * number)
        yield max(*unpack_from("<q", body, place), 0) if length else 0


def _field(data: memoryview, table: int, number: int) -> int | None:
    """Where what a field of a flatbuffer's table points to begins."""
    known = table - unpack_from("<i", data, table)[0]
    offset = unpack_from("<H", data, known + 4 + 2 * number)[0] if 4 + 2 * number < unpack_from("<H", data, known)[0] else 0
    return table + offset + unpack_from("<I", data, table + offset)[0] if offset else None
