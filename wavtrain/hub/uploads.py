"""Uploads: one at a time, each in a process of its own (`python -m wavtrain.hub.uploads`), so that a run neither waits for one
nor ends with one.

The process is told by its standard input what to do, and ends when that is closed, as it is when the run has died.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import RemoteEntryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import logging as library_logging

from wavtrain.hub.card_text import CARD, was_edited
from wavtrain.hub.repository import OF_THE_HUB, Repository, in_one_line, is_final

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
WAITS = (1.0, 5.0, 20.0, 60.0)  # seconds before each further try; the library tries some requests itself as well


class Uploads:
    """Of one repository, from one folder into which a snapshot is put for each."""

    def __init__(self, repository: Repository, stage: str) -> None:
        self.repository, self.stage = repository, stage
        self._process: subprocess.Popen | None = None
        shutil.rmtree(stage, ignore_errors=True)  # of a run that was killed

    def is_busy(self) -> bool:
        """Whether one is at work."""
        return self._process is not None and self._process.poll() is None

    def begin(self, message: str, fill: Callable[[str], None]) -> None:
        """`fill` puts the files into a folder; from then on they may change elsewhere. No other may be at work."""
        shutil.rmtree(self.stage, ignore_errors=True)
        os.makedirs(self.stage)
        fill(self.stage)
        known = vars(self.repository)
        job = {"repository": known, "folder": self.stage, "message": message, "waits": WAITS}
        paths = [ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        self._process = subprocess.Popen([sys.executable, "-m", "wavtrain.hub.uploads"], stdin=subprocess.PIPE, text=True,
                                         stdout=subprocess.PIPE, env=environment, start_new_session=True)
        self._process.stdin.write(f"{json.dumps(job)}\n")
        self._process.stdin.flush()

    def outcome(self, patience: float | None = None) -> dict[str, Any] | None:
        """What became of the last one: its `fault` if it has one; None where there was none. One that takes longer is ended."""
        process, self._process = self._process, None
        if process is None:
            return None
        try:
            process.wait(patience)
            told = process.stdout.read()
            fault = f"the upload ended with code {process.returncode}"
            return json.loads(told.splitlines()[-1]) if process.returncode == 0 else {"fault": fault, "notes": []}
        except subprocess.TimeoutExpired:
            return {"fault": "stopped before its end", "notes": []}
        finally:
            process.kill()
            process.wait()
            with contextlib.suppress(BrokenPipeError):  # it died before it was told what to do
                process.stdin.close()
            process.stdout.close()
            shutil.rmtree(self.stage, ignore_errors=True)


def linked(source: str, target: str) -> None:
    """A second name for a file that never changes in place; where a file system has no such thing, a copy."""
    try:
        os.link(os.path.realpath(source), target)  # of a symbolic link it would make another, which may lead nowhere
    except OSError:
        shutil.copyfile(source, target)


def pushed(repository: Repository, folder: str, message: str, waits: tuple[float, ...]) -> dict[str, Any]:
    """All files of the folder in one commit, tried again as long as the fault may pass."""
    notes: list[str] = []
    for wait in (*waits, None):
        try:
            repository.name = repository.made()
            return {"fault": None, "url": _commit(repository, folder, message, notes), "name": repository.name, "notes": notes}
        except OF_THE_HUB as error:
            fault = in_one_line(error, repository.token)
            if wait is None or is_final(error):
                break
            print(f"{repository.name}: {fault}; tried again in {wait:g} s", file=sys.stderr, flush=True)
            time.sleep(wait)
    return {"fault": fault, "name": repository.name, "notes": notes}


def _commit(repository: Repository, folder: str, message: str, notes: list[str]) -> str:
    api, where = HfApi(token=repository.token), {"repo_id": repository.name, "repo_type": repository.kind}
    files = {os.path.relpath(path, folder): path for parent, _, names in os.walk(folder)
             for path in (os.path.join(parent, name) for name in names)}
    if CARD in files and _was_edited_there(api, where, files[CARD]):
        del files[CARD]
        notes[:] = [f"{CARD} was edited on the Hub and is left as it is there"]
    commit = {**where, "commit_message": message}
    try:
        done = api.create_commit(operations=[CommitOperationAdd(name, path) for name, path in sorted(files.items())], **commit)
    except ValueError as error:
        if "metadata" not in str(error) or CARD not in files:
            raise
        notes[:] = [f"{CARD} is not pushed, the Hub refuses it: {in_one_line(ValueError(str(error)), repository.token)}"]
        del files[CARD]
        done = api.create_commit(operations=[CommitOperationAdd(name, path) for name, path in sorted(files.items())], **commit)
    return done.repo_url


def _was_edited_there(api: HfApi, where: dict[str, str], card: str) -> bool:
    with open(card, encoding="utf-8", errors="replace") as file, tempfile.TemporaryDirectory() as folder:
        if was_edited(file.read()):
            return False  # what was edited here is meant to be there
        try:
            path = api.hf_hub_download(filename=CARD, local_dir=folder, **where)
        except (RemoteEntryNotFoundError, RevisionNotFoundError):
            return False
        with open(path, encoding="utf-8", errors="replace") as there:
            return was_edited(there.read())


def main() -> None:
    """One upload; what became of it is printed as JSON."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_run, daemon=True).start()
    library_logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    about = job.pop("repository")
    print(json.dumps(pushed(Repository(about["name"], about["kind"], about["token"], about["is_private"]), **job)))


def _end_with_the_run() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock this thread would hold when the process ends
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
