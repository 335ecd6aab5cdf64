"""Corpus flags -> prepared speech: opens what is prepared, prepares what is not, and lets one process do it for all."""

import logging
import os
import time
from dataclasses import fields
from typing import Any

import psutil
import xxhash

from wavtrain import InputError
from wavtrain.durable_files import holder, lock
from wavtrain.speech.clips import ClipLimits
from wavtrain.speech.manifests import CorpusOptions, open_corpora
from wavtrain.speech.preparation_plan import Plan, changes, plan_preparation
from wavtrain.speech.prepared_directory import PreparedSpeech, drop_unfinished, open_prepared, unfinished_path
from wavtrain.speech.speech_cache import begun_plan, prepare

SECONDS_BETWEEN_LOOKS = 0.5
SAYS_WHAT_IS_SO = {"dataset_config_names": ("default",), "dataset_split_names": ("train",)}

logger = logging.getLogger(__name__)


def already_prepared(corpus: CorpusOptions, limits: ClipLimits, percentage: float | None) -> PreparedSpeech | None:
    """What --dataset_name names, if that is a prepared directory; flags that could not change it any more are refused."""
    name = os.path.expanduser(corpus.dataset_name[0])
    prepared = open_prepared(name) if len(corpus.dataset_name) == 1 and os.path.isdir(name) else None
    if prepared is None:
        return None
    was, asked = prepared.report["arguments"], prepared.report.get("asked_for", {})
    said = {flag: tuple(value) if isinstance(value, list) else value for flag, value in asked.items()}
    wanted = {each.name: getattr(limits, each.name) for each in fields(limits) if getattr(limits, each.name) != each.default}
    if percentage is not None:
        wanted["validation_split_percentage"] = percentage
    for flag, value in wanted.items():
        if value != was[flag]:
            raise InputError(f"--{flag} {value}: {name} is prepared already, with {was[flag]}; leave the flag out, "
                             "or prepare the corpus it came from again")
    for each in fields(corpus):
        is_so = (each.default, said.get(each.name), SAYS_WHAT_IS_SO.get(each.name))
        if each.name != "dataset_name" and getattr(corpus, each.name) not in is_so:
            raise InputError(f"--{each.name} has no effect on {name}, which is prepared already: leave it out")
    return prepared


def cache_folder(cache_dir: str | None, corpus: CorpusOptions, limits: ClipLimits, percentage: float | None) -> str:
    """Where a script that is given a raw corpus keeps it prepared: one folder for each set of corpus flags."""
    root = cache_dir or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "wavtrain")
    names = [os.path.abspath(name) if os.path.exists(name) else name for name in corpus.dataset_name]
    told = repr((names, vars(corpus) | {"dataset_name": None}, vars(limits), percentage))
    first = os.path.basename(os.path.normpath(names[0])) or "corpus"
    return os.path.join(root, f"prepared-{first}-{xxhash.xxh3_64_hexdigest(told.encode('utf-8', 'backslashreplace'))}")


def prepared_speech(
    corpus: CorpusOptions,
    limits: ClipLimits,
    folder: str,
    *,
    validation_percentage: float | None = None,
    num_workers: int = 1,
    cache_dir: str | None = None,
    overwrite: bool = False,
    share: tuple[int, int] | None = None,
    may_prepare: bool = True,
    waits: bool = True,
) -> PreparedSpeech | None:
    """Prepared speech in `folder`. Of the processes of one launch only those that `may_prepare` do; the others look on.

    `share` (index, number of jobs) does the part of one job of an array and returns None.
    `waits`: when another run is preparing the same directory, wait for it rather than refuse.
    """
    if corpus.validation_split_names and validation_percentage:
        raise InputError("--validation_split_percentage: --validation_split_names says already what is held out")
    percentage = (0.0 if corpus.validation_split_names else 1.0) if validation_percentage is None else validation_percentage
    plan = plan_preparation(open_corpora(corpus, cache_dir), limits, percentage, _given(corpus))
    if not may_prepare:
        return _wait_for_others(plan, folder, _launched_at() if overwrite else 0.0)
    done = _complete(folder) if os.path.isdir(folder) and not overwrite else None
    if done and done.report["fingerprint"] == plan.fingerprint and not os.path.isdir(unfinished_path(folder)):
        return _nothing_to_do(done)  # without a lock: a cache that others share may be read-only
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: no folder can be made there ({error.strerror})") from error
    path, told = os.path.join(folder, ".lock" if share is None else f".lock-{share[0]}-of-{share[1]}"), False
    while True:
        held = lock(path, waits_for_hosts=not waits)
        if held:
            try:
                _refuse_beside_others(plan, folder, share)
                return _prepare_if_needed(plan, folder, num_workers, overwrite, share)
            finally:
                held.release()
        if not waits:
            raise InputError(f"--output_dir {folder}: another run is preparing it ({holder(path)}): wait for its end, or give "
                             "another --output_dir")
        if not told:
            logger.info("%s: another run (%s) is preparing this corpus; waiting for it", folder, holder(path))
            told, overwrite = True, False  # what it writes is new
        time.sleep(SECONDS_BETWEEN_LOOKS)


def link_split(prepared: PreparedSpeech, split: str, link: str) -> None:
    """Another name for a split on disk."""
    if os.path.lexists(link) and not os.path.islink(link):
        raise InputError(f"--{split}_cache_file_name {link}: is there and is no link; give another name")
    if os.path.islink(link):
        os.remove(link)
    os.makedirs(os.path.dirname(os.path.abspath(link)), exist_ok=True)
    os.symlink(os.path.abspath(os.path.join(prepared.folder, split)), link)


def _given(options: CorpusOptions) -> dict[str, Any]:
    given = {each.name: getattr(options, each.name) for each in fields(options) if getattr(options, each.name) != each.default}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


def _refuse_beside_others(plan: Plan, folder: str, share: tuple[int, int] | None) -> None:
    """Jobs of an array may run beside each other on the same data, but not beside the call that joins their work."""
    begun = begun_plan(folder) or {}
    is_same_work = begun.get("fingerprint", plan.fingerprint) == plan.fingerprint
    of_jobs = sorted(name for name in os.listdir(folder) if name.startswith(".lock-"))
    mine = f".lock-{share[0]}-of-{share[1]}" if share else ".lock"
    for name in [".lock"] if share and is_same_work else [".lock", *of_jobs]:
        held = lock(os.path.join(folder, name)) if name != mine else None
        if held is None and name != mine:
            job = name.removeprefix(".lock-").replace("-", " ")
            whose = "a call without --shard_index" if name == ".lock" else f"job {job}"
            why = "" if is_same_work else f" on other data or arguments ({changes(begun, plan.identity)})"
            who = holder(os.path.join(folder, name))
            raise InputError(f"{folder}: {whose} ({who}) is still at work in it{why}; run this again when that has ended")
        if held:
            held.release()


def _prepare_if_needed(
    plan: Plan, folder: str, num_workers: int, overwrite: bool, share: tuple[int, int] | None
) -> PreparedSpeech | None:
    done = _complete(folder)  # unfinished or damaged: that is what this call is for
    if done and done.report["fingerprint"] == plan.fingerprint and not overwrite:
        drop_unfinished(folder)
        return _nothing_to_do(done)
    if done:
        why = changes(done.report, plan.identity) if done.report["fingerprint"] != plan.fingerprint else "--overwrite_cache"
        logger.info("%s: preparing again: %s", folder, why)
    elif _foreign_content(folder):
        raise InputError(f"{folder}: holds {_foreign_content(folder)}, which is no preparation of this program; "
                         "give an empty or a new folder")
    if overwrite:
        drop_unfinished(folder)
    return prepare(plan, folder, num_workers, share)


def _complete(folder: str) -> PreparedSpeech | None:
    try:
        return open_prepared(folder)
    except InputError:
        return None


def _nothing_to_do(done: PreparedSpeech) -> PreparedSpeech:
    logger.info("%s: prepared already from the same data with the same arguments; nothing to do", done.folder)
    return done


def _foreign_content(folder: str) -> str | None:
    """A train/ or validation/ folder that this program would have to delete and did not write."""
    if os.path.isdir(unfinished_path(folder)) or os.path.exists(os.path.join(folder, "preparation.json")):
        return None
    return next((f"{name}/" for name in ("train", "validation") if os.path.exists(os.path.join(folder, name))), None)


def _wait_for_others(plan: Plan, folder: str, not_before: float) -> PreparedSpeech:
    """Look until the directory is complete. No collective: those time out. A launcher ends this process if the other fails."""
    while True:
        done = _complete(folder)
        is_new = done and os.path.getmtime(os.path.join(folder, "preparation.json")) >= not_before
        if done and is_new and done.report["fingerprint"] == plan.fingerprint:
            return done
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _launched_at() -> float:
    """When the launcher of this process started: what was complete before is not what --overwrite_cache asks for."""
    return psutil.Process(os.getppid()).create_time()
