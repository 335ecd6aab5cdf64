"""The fault bench in short; and every fault that it found, with locks and checksums, each by itself."""

import errno
import fcntl
import os
import signal
import struct
import subprocess
import sys
import threading
import time

import pytest
from accelerate import Accelerator
from conftest import ROOT, write_folder

import run_preprocessing
from wavtrain import InputError, checkpoint_files, durable_files
from wavtrain.checkpoint_files import damage, newest_whole
from wavtrain.durable_files import holder, is_locked, lock
from wavtrain.reporting.tracking import Tracking
from wavtrain.run_directory import LOCK, held, save_checkpoint
from wavtrain.run_options import RunOptions
from wavtrain.speech.prepared_directory import open_prepared


def test_the_bench_in_short(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / "faults.py", "--short"], capture_output=True, text=True,
                          env={**os.environ, "TMPDIR": str(tmp_path)}, timeout=600)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1].split()
    assert last[0] == "all"
    assert last[1] == last[2] == "3"
    assert last[4] == "0"


# Locks


def test_a_lock_is_refused_to_others_and_says_whose_it_is(tmp_path):
    path = str(tmp_path / "lock")
    mine = lock(path)
    assert lock(path) is None
    assert holder(path) == f"process {os.getpid()} on {os.uname().nodename}"
    mine.release()
    mine.release()
    again = lock(path)
    assert again is not None
    again.release()


def test_a_lock_dies_with_its_process_also_where_that_has_forked(tmp_path):
    """A loader's process outlives a run that was killed, for a moment."""
    path, child = str(tmp_path / "lock"), tmp_path / "child"
    pid = os.fork()
    if pid == 0:
        lock(path)
        forked = os.fork()
        if forked:
            child.with_suffix(".part").write_text(str(forked))
            child.with_suffix(".part").rename(child)
        time.sleep(60)
        os._exit(0)
    while not child.exists():
        time.sleep(0.01)
    assert lock(path) is None
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    free = lock(path)
    os.kill(int(child.read_text()), signal.SIGKILL)
    assert free is not None
    free.release()


def test_the_lock_of_another_host_is_waited_for_as_long_as_a_file_server_keeps_it(tmp_path, monkeypatch, caplog):
    path = str(tmp_path / "lock")
    monkeypatch.setattr(durable_files, "PATIENCE", 0.0)
    monkeypatch.setattr(durable_files, "PATIENCE_WITH_HOSTS", 0.1)
    theirs = lock(path)
    assert lock(path, waits_for_hosts=True) is None
    assert not caplog.messages, "of this host: refused at once"
    for content in ("", "process 7 on elsewhere"):
        (tmp_path / "lock").write_text(content)
        assert lock(path, waits_for_hosts=True) is None
    assert [message.split("; ")[0] for message in caplog.messages] == [f"{path}: held by process 7 on elsewhere"]
    monkeypatch.setattr(durable_files, "PATIENCE_WITH_HOSTS", 60.0)
    threading.Timer(0.2, theirs.release).start()
    mine = lock(path, waits_for_hosts=True)
    assert mine is not None
    mine.release()


@pytest.mark.parametrize(("number", "is_fault"), [(errno.EIO, True), (errno.ESTALE, True), (errno.ENOLCK, False),
                                                  (errno.ENOTSUP, False)])
def test_a_file_system_that_fails_to_lock_is_one_line(number, is_fault, tmp_path, monkeypatch, caplog):
    def fail(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    if is_fault:
        with pytest.raises(InputError, match="lock: cannot be locked"):
            lock(str(tmp_path / "lock"))
        return
    lock(str(tmp_path / "lock")).release()
    assert [message.split(": ", 1)[1][:29] for message in caplog.messages] == ["this file system has no locks"]


def test_a_run_keeps_its_directory(tmp_path):
    run = tmp_path / "runs" / "run"
    with held(str(run)):
        with (pytest.raises(InputError, match=rf"^--output_dir {run}: another run .*\(process {os.getpid()} on .*another "),
              held(str(run))):
            pass
        assert os.listdir(run) == [LOCK]
    assert os.listdir(tmp_path) == [], "nothing was done"
    with held(str(run)):
        (run / "arguments.yaml").touch()
    assert sorted(os.listdir(run)) == [LOCK, "arguments.yaml"]


def test_a_lock_that_goes_with_its_file_is_no_lock(tmp_path):
    """Who has opened the file before it is removed waits for what nobody else will see."""
    path = str(tmp_path / "run.lock")
    first, found = lock(path), []
    other = threading.Thread(target=lambda: found.append(lock(path)))
    other.start()
    time.sleep(0.1)
    assert is_locked(path)
    os.remove(path)
    first.release()
    other.join()
    assert is_locked(path), "the other has made and locked it anew"
    found[0].release()
    assert not is_locked(path)
    assert not is_locked(str(tmp_path / "none"))
    assert os.listdir(tmp_path) == ["run.lock"]


# Checkpoints


@pytest.fixture
def checkpoints(tmp_path):
    """Of the steps 10, 20 and 30."""
    def write(folder):
        os.makedirs(f"{folder}/model")
        with open(f"{folder}/model/weights", "wb") as file:
            file.write(bytes(1000))

    for step in (10, 20, 30):
        save_checkpoint(str(tmp_path), step, write, {"step": step}, is_main=True, wait_for_everyone=lambda: None, keep=3)
    return tmp_path / "checkpoints"


DAMAGES = {
    "model/weights has 999 bytes, 1000 were written": lambda folder: os.truncate(folder / "model" / "weights", 999),
    "model/weights holds other bytes": lambda folder: (folder / "model" / "weights").write_bytes(bytes(999) + b"1"),
    "model/weights is missing": lambda folder: (folder / "model" / "weights").unlink(),
    "progress.json holds other": lambda folder: (folder / "progress.json").write_text('{\n  "step": 31\n}\n'),
    "progress.json is missing": lambda folder: (folder / "progress.json").unlink(),
    "progress.json is missing ": lambda folder: [(folder / name).unlink() for name in ("checksums.json", "progress.json")],
    "checksums.json is damaged": lambda folder: os.truncate(folder / "checksums.json", 50),
    "checksums.json is damaged ": lambda folder: (folder / "checksums.json").write_text('{"progress.json": 3}'),
}


@pytest.mark.parametrize("fault", DAMAGES)
def test_any_damage_is_found(fault, checkpoints):
    assert damage(str(checkpoints / "step_00000030")) is None
    DAMAGES[fault](checkpoints / "step_00000030")
    assert damage(str(checkpoints / "step_00000030")).startswith(fault.strip())


def failing_with(number, name, monkeypatch):
    """Reading a file of this name fails so."""
    def opened(path, *args, **kwargs):
        if str(path).endswith(f"step_00000030/{name}"):
            raise OSError(number, os.strerror(number), path)
        return open(path, *args, **kwargs)

    for module in (checkpoint_files, durable_files):
        monkeypatch.setattr(module, "open", opened, raising=False)


@pytest.mark.parametrize("name", ["checksums.json", "model/weights"])
def test_a_bad_sector_is_damage_and_what_passes_is_not(name, checkpoints, monkeypatch):
    failing_with(errno.EMFILE, name, monkeypatch)
    with pytest.raises(OSError, match="Too many open files"):
        newest_whole(str(checkpoints))
    assert len(os.listdir(checkpoints)) == 3
    failing_with(errno.EIO, name, monkeypatch)
    assert newest_whole(str(checkpoints)) == str(checkpoints / "step_00000020")


def test_checkpoints_from_before_checksums_are_taken_as_they_are(checkpoints, caplog):
    (checkpoints / "step_00000030" / "checksums.json").unlink()
    assert newest_whole(str(checkpoints)) == str(checkpoints / "step_00000030")
    assert "step_00000030: has no checksums.json" in caplog.text


def test_damaged_checkpoints_are_passed_over_and_step_aside(checkpoints, caplog):
    os.truncate(checkpoints / "step_00000030" / "model" / "weights", 0)
    (checkpoints / "step_00000020" / "progress.json").unlink()
    assert newest_whole(str(checkpoints)) == str(checkpoints / "step_00000010")
    assert "step_00000030: model/weights has 0 bytes" in caplog.text
    assert "step_00000020: progress.json is missing" in caplog.text
    assert sorted(os.listdir(checkpoints)) == ["step_00000010", "step_00000020.dropped", "step_00000030.dropped"]


def test_no_run_begins_again_by_itself_where_every_checkpoint_is_damaged(checkpoints):
    for folder in checkpoints.iterdir():
        (folder / "model" / "weights").unlink()
    with pytest.raises(InputError, match=r"--resume_from_checkpoint latest: no checkpoint in .* is as it was written"):
        newest_whole(str(checkpoints))
    assert len(os.listdir(checkpoints)) == 3


# Prepared speech


@pytest.fixture
def prepared(tmp_path):
    write_folder(tmp_path / "corpus", [1.0, 1.2])
    run_preprocessing.main(["--dataset_name", str(tmp_path / "corpus"), "--output_dir", str(tmp_path / "prepared"),
                            "--validation_split_percentage", "0", "--preprocessing_num_workers", "1"])
    return tmp_path / "prepared"


def garble(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("name", "break_it", "fault"), [
    ("data-0000-00000.arrow", lambda path: os.truncate(path, 5000), "has 5000 bytes"),
    ("data-0000-00000.arrow", lambda path: path.unlink(), "is missing"),
    ("data-0000-00000.arrow", lambda path: garble(path, path.read_bytes().index(struct.pack("<q", 16_000))), "holds other"),
    ("data-0000-00000.arrow", lambda path: garble(path, path.read_bytes().index(b"001")), "holds other"),
    ("data-0000-00000.arrow", lambda path: path.write_bytes(bytes(path.stat().st_size)), ""),
    ("state.json", lambda path: garble(path, 9), "holds other"),
    ("checksums.json", lambda path: os.truncate(path, 9), "is missing (did"),
], ids=["truncated", "missing", "length", "name", "zeros", "state", "checksums"])
def test_a_damaged_prepared_file_is_named_when_it_is_opened(name, break_it, fault, prepared):
    assert len(open_prepared(str(prepared)).load("train")) == 2
    break_it(prepared / "train" / name)
    with pytest.raises(InputError) as caught:
        open_prepared(str(prepared)).load("train")
    assert f"--dataset_name: the prepared file {prepared}/train/{name} {fault}" in str(caught.value)


def test_a_damaged_prepared_directory_is_no_corpus_either(prepared, tmp_path):
    argv = ["--output_dir", str(tmp_path / "joined"), "--preprocessing_num_workers", "1", "--dataset_name"]
    path = prepared / "train" / "data-0000-00000.arrow"
    garble(path, path.read_bytes().index(b"001"))
    for names in ([prepared, tmp_path / "corpus"], [prepared / "train", tmp_path / "corpus"]):
        with pytest.raises(InputError, match=r"train/data-0000-00000\.arrow holds other bytes"):
            run_preprocessing.main([*argv, *map(str, names)])


# Full disks


def test_where_a_folder_is_gone_the_error_is_that_of_the_writer(tmp_path):
    def fail(folder):
        raise RuntimeError("PytorchStreamWriter failed writing file")

    with pytest.raises(RuntimeError, match="PytorchStreamWriter"):
        durable_files.write_or_say_full(fail, str(tmp_path / "gone"))


def test_a_full_disk_names_the_file_and_a_tracker_that_meets_it_in_its_thread_has_one_line_too(tmp_path, caplog):
    """/dev/full takes nothing."""
    before = threading.excepthook
    tracking = Tracking(Accelerator(cpu=True), RunOptions(str(tmp_path)), 2, 0, {})
    tracking._file.close()
    tracking._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115 (closed below)
    with pytest.raises(OSError, match="No space left") as caught:
        tracking.record("train", 1, {"loss": 1.0})
    assert caught.value.filename == "/dev/full"

    def write():
        raise OSError(errno.ENOSPC, "No space left on device", "events")

    writer = threading.Thread(target=write, name="writer")
    writer.start()
    writer.join()
    tracking.close()
    assert threading.excepthook is before
    assert [record.getMessage() for record in caplog.records] == ["writer ended: [Errno 28] No space left on device: 'events'"]
