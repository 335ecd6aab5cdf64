"""Sources of rows -> a prepared directory: shard by shard, fingerprinted, resumable, complete only when it says so.

    prepared/unfinished/   plan.json, and a record in shards/ for every shard that is done: what a resumed run builds on
    prepared/              train/ validation/ rejected.jsonl, and preparation.json, written last
"""

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from functools import partial
from typing import Any

from wavtrain import InputError
from wavtrain.durable_files import read_json, write_json
from wavtrain.progress import Heard, pass_over, progress_bar
from wavtrain.speech.preparation_plan import Plan, changes
from wavtrain.speech.prepared_directory import (
    PreparedSpeech,
    drop_unfinished,
    finish_interrupted_join,
    join_shards,
    record_path,
    unfinished_path,
)
from wavtrain.speech.rows import Rejection, Row
from wavtrain.speech.shards import Shard, prepare_shard, whereabouts_path
from wavtrain.speech.waveforms import SAMPLING_RATE
from wavtrain.workers import WorkerDiedError, Workers

logger = logging.getLogger(__name__)


def prepare(plan: Plan, folder: str, num_workers: int, share: tuple[int, int] | None = None) -> PreparedSpeech | None:
    """Do what is not done yet. Of a job array only this job's share (index, number of jobs): None; the rest join it."""
    begun = begun_plan(folder) or {}
    has_records = os.path.isdir(unfinished_path(folder, "shards"))  # made after the plan: of what, if there is none?
    if begun.get("fingerprint") != plan.fingerprint and (begun or has_records):
        logger.info("%s: the unfinished preparation in it is dropped: %s", folder, changes(begun, plan.identity))
        drop_unfinished(folder)
    joined = finish_interrupted_join(folder)
    if joined:
        return joined
    write_json(unfinished_path(folder, "plan.json"), plan.identity)
    os.makedirs(unfinished_path(folder, "shards"), exist_ok=True)
    try:
        names = _prepare_all(plan, folder, num_workers, share)
    finally:
        if share is None:  # beside other jobs of an array these may be theirs; the call that joins them sweeps up
            _remove_parts(folder)
    return join_shards(folder, names, plan.identity) if share is None else None


def _prepare_all(plan: Plan, folder: str, num_workers: int, share: tuple[int, int] | None) -> list[str]:
    """The names of all shards, every one of which (of this share) is done now."""
    names: list[str] = []
    with progress_bar(plan.num_rows, "clips", "preparing") as bar:
        tasks, heard = _tasks(plan, folder, names, share, partial(pass_over, bar)), Heard()
        with closing(_in_workers(plan, folder, tasks, num_workers)) as records:
            for record in records:
                seconds = sum(split["samples"] for split in record["splits"].values()) / SAMPLING_RATE
                bar.set_postfix_str(heard.add(seconds), refresh=False)
                bar.update(record["num_rows"])
    return names


def begun_plan(folder: str) -> dict[str, Any] | None:
    """What an unfinished preparation in the folder set out to do."""
    try:
        return read_json(unfinished_path(folder, "plan.json"))
    except ValueError:
        return {}


def _remove_parts(folder: str) -> None:
    """What killed workers left half written."""
    for parent, _, files in os.walk(unfinished_path(folder)):
        for name in files:
            if name.endswith((".part", ".at")):
                os.remove(os.path.join(parent, name))


def _tasks(
    plan: Plan, folder: str, names: list[str], share: tuple[int, int] | None, skip: Callable[[int], object]
) -> Iterator[Shard]:
    """Shards still to do, while `names` collects those of all; `skip` hears of the rows of those done before."""
    for number, source in enumerate(plan.sources):
        is_stream = source.num_rows is None and source.signature is not None
        counted = unfinished_path(folder, "shards", f"source-{number:04d}.json")
        if is_stream and share and number % share[1] != share[0]:
            continue  # the jobs of an array divide a stream by its files, not to read all of it each
        num_shards = read_json(counted)
        known = [f"{number:04d}-{index:05d}" for index in range(num_shards or 0)]
        if is_stream and num_shards is not None and all(os.path.exists(record_path(folder, name)) for name in known):
            names += known
            continue
        first = len(names)
        for index, rows in enumerate(_cut(source.rows(), *plan.shard_limits)):
            name = f"{number:04d}-{index:05d}"
            names.append(name)
            if os.path.exists(record_path(folder, name)):
                skip(len(rows))
            elif not share or is_stream or (len(names) - 1) % share[1] == share[0]:
                yield Shard(name, number, source.corpus, source.split, rows)
        if is_stream:
            write_json(counted, len(names) - first)


def _cut(rows: Iterator[Row | Rejection], most_rows: int, most_bytes: int) -> Iterator[list[Row | Rejection]]:
    """Consecutive rows, so many or so many bytes at a time."""
    shard: list[Row | Rejection] = []
    num_bytes = 0
    for row in rows:
        shard.append(row)
        if isinstance(row, Row):
            num_bytes += row.num_bytes
        if len(shard) >= most_rows or num_bytes >= most_bytes:
            yield shard
            shard, num_bytes = [], 0
    if shard:
        yield shard


def _in_workers(plan: Plan, folder: str, shards: Iterator[Shard], num_workers: int) -> Iterator[dict[str, Any]]:
    """Records of shards as they are done, whichever comes first; only a few shards wait in memory."""
    def prepared(shard: Shard) -> dict[str, Any]:
        readers = [source.read_audio for source in plan.sources]
        return prepare_shard(shard, readers, folder, plan.limits, plan.validation_percentage)

    running: dict[Future[dict[str, Any]], Shard] = {}
    with Workers(prepared, num_workers) as workers:
        for shard in shards:
            running[workers.submit(shard)] = shard
            while len(running) > num_workers:
                yield from _finished(running, folder)
        while running:
            yield from _finished(running, folder)


def _finished(running: dict[Future[dict[str, Any]], Shard], folder: str) -> Iterator[dict[str, Any]]:
    done = wait(running, return_when=FIRST_COMPLETED).done
    for future in [each for each in running if each in done]:  # the first to fail is the one whose worker died of it
        shard = running.pop(future)
        try:
            yield future.result()
        except WorkerDiedError as error:
            raise InputError(_last_words(folder, shard)) from error


def _last_words(folder: str, shard: Shard) -> str:
    """Which row was at work when a worker died."""
    try:
        with open(whereabouts_path(folder, shard.name)) as file:
            suspect = shard.rows[int(file.read())].source
    except (OSError, ValueError):
        suspect = "no row"
    return (f"a worker process died, killed by the system (out of memory?) or by a file that crashes the decoder; at work on "
            f"{suspect}. Finished shards are kept: the same command goes on")
