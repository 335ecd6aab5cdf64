"""Preparation as a whole, in shards: the same result for any number of workers, for a job array, and after a kill."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
from conftest import ROOT, sound, write_folder

import run_preprocessing
from wavtrain import InputError
from wavtrain.speech.prepared_directory import open_prepared
from wavtrain.speech.shards import is_held_out

NUM_SHARDS = 16


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """300 clips of five seconds at 22.05 kHz: 16 shards of 4 MB, a second or two of work; some are no clips."""
    folder = write_folder(tmp_path_factory.mktemp("corpus"), [5.0] * 300, rate=22_050, ending="wav")
    (folder / "broken.wav").write_bytes(b"not audio")
    (folder / "silent.flac").write_bytes(b"")
    soundfile.write(folder / "silence.wav", np.zeros(16_000, np.int16), 16_000)
    shutil.copy(folder / "000.wav", folder / "twin.wav")
    return folder


def prepare(corpus, output, *flags):
    return run_preprocessing.main(["--dataset_name", str(corpus), "--output_dir", str(output), *map(str, flags)])


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("unbroken") / "prepared"
    prepare(corpus, output, "--validation_split_percentage", 10)
    return output


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_result(unbroken, corpus):
    report = json.loads((unbroken / "preparation.json").read_text())
    train, validation = (datasets.load_from_disk(str(unbroken / split)) for split in ("train", "validation"))
    assert train.column_names == ["utterance_id", "audio", "num_samples", "text", "speaker", "language", "corpus"]
    assert len(train) + len(validation) == 301
    assert report["splits"]["train"]["clips"] == len(train)
    assert report["splits"]["train"]["hours"] == pytest.approx(sum(train["num_samples"]) / 16_000 / 3_600, abs=1e-6)
    for split in (train, validation):
        assert all(is_held_out(name, 10) == (split is validation) for name in split["utterance_id"])
    assert 15 < len(validation) < 50
    row = train[0]
    samples, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="int16")
    assert (len(samples), rate) == (row["num_samples"], 16_000)
    rejected = [json.loads(line) for line in (unbroken / "rejected.jsonl").read_text().splitlines()]
    assert [(Path(each["source"]).name, each["reason"]) for each in rejected] == [
        ("broken.wav", "unreadable"), ("silence.wav", "silent"), ("silent.flac", "unreadable")]
    assert {reason: count["clips"] for reason, count in report["rejected"].items()} == {"silent": 1, "unreadable": 2}
    assert report["remarks"]["duplicate_audio"]["clips"] == 1
    assert report["remarks"]["duplicate_audio"]["examples"] == [["000.wav", "twin.wav"]]


def test_nothing_is_redone_for_the_same_data_and_arguments(unbroken, corpus, caplog):
    before = {path: os.stat(path).st_mtime_ns for path in sorted(unbroken.rglob("*.*")) if path.name != ".lock"}
    with caplog.at_level("INFO"):
        prepare(corpus, unbroken, "--validation_split_percentage", 10, "--preprocessing_num_workers", 1)
    assert {path: os.stat(path).st_mtime_ns for path in before} == before
    assert "nothing to do" in caplog.text


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_gives_the_same_bytes(workers, unbroken, corpus, tmp_path):
    prepare(corpus, tmp_path / "p", "--validation_split_percentage", 10, "--preprocessing_num_workers", workers)
    assert contents(tmp_path / "p") == contents(unbroken)


def test_a_job_array_joined_equals_one_run(unbroken, corpus, tmp_path):
    flags = ("--validation_split_percentage", 10)
    for index in (2, 0, 1):
        assert prepare(corpus, tmp_path / "p", *flags, "--num_shards", 3, "--shard_index", index) == {}
    with pytest.raises(InputError, match="not finished"):
        open_prepared(str(tmp_path / "p"))
    records = sorted((tmp_path / "p" / "unfinished" / "shards").glob("*.json"))
    assert len(records) == NUM_SHARDS
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "p" / "unfinished" / "train").glob("*.arrow")}
    prepare(corpus, tmp_path / "p", *flags)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "p" / "train").glob("*.arrow")} == made
    joined = contents(tmp_path / "p")
    assert {name: data for name, data in joined.items() if not name.startswith(".lock")} == {
        name: data for name, data in contents(unbroken).items() if not name.startswith(".lock")}


def test_a_killed_preparation_goes_on_where_it_was(unbroken, corpus, tmp_path):
    output = tmp_path / "p"
    command = [sys.executable, "run_preprocessing.py", "--dataset_name", str(corpus), "--output_dir", str(output),
               "--validation_split_percentage", "10", "--preprocessing_num_workers", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    shards = output / "unfinished" / "shards"
    deadline = time.monotonic() + 60
    while len(list(shards.glob("*.json"))) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path.stem for path in shards.glob("*.json")}
    assert 2 <= len(done) < NUM_SHARDS
    assert not (output / "preparation.json").exists()
    with pytest.raises(InputError, match="not finished"):
        open_prepared(str(output))
    kept = {f"data-{name}.arrow": (output / "unfinished" / "train" / f"data-{name}.arrow").stat().st_mtime_ns for name in done}
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert {name: (output / "train" / name).stat().st_mtime_ns for name in kept} == kept  # these were not done again
    assert contents(output) == contents(unbroken)


def test_a_kill_in_the_last_renames_is_mended(unbroken, corpus, tmp_path):
    output = tmp_path / "p"
    shutil.copytree(unbroken, output)
    whole = contents(output)
    os.makedirs(output / "unfinished" / "shards")
    report = json.loads((output / "preparation.json").read_text())
    (output / "unfinished" / "plan.json").write_text(json.dumps(report))
    for name in ("preparation.json", "rejected.jsonl", "validation"):  # train/ was moved, the rest was not
        os.rename(output / name, output / "unfinished" / name)
    prepare(corpus, output, "--validation_split_percentage", 10)
    assert contents(output) == whole


def test_changed_arguments_are_named_and_the_old_directory_serves_until_the_new_is_whole(corpus, unbroken, tmp_path, caplog):
    output = tmp_path / "p"
    shutil.copytree(unbroken, output)
    with caplog.at_level("INFO"):
        report = prepare(corpus, output, "--min_duration_in_seconds", 2, "--validation_split_percentage", 0)
    assert "--min_duration_in_seconds was 0.1, is 2.0" in caplog.text
    assert "--validation_split_percentage was 10.0, is 0.0" in caplog.text
    assert list(report["splits"]) == ["train"]
    assert not (output / "validation").exists()


def test_changed_data_is_named(tmp_path, caplog):
    folder = write_folder(tmp_path / "corpus", [1.0, 1.0])
    prepare(folder, tmp_path / "p")
    with caplog.at_level("INFO"):
        soundfile.write(folder / "001.flac", sound(1.5, 7), 16_000)
        assert prepare(folder, tmp_path / "p")["splits"]["train"]["hours"] == pytest.approx(2.5 / 3600, abs=1e-6)
        assert "files or texts of corpus changed" in caplog.text
        soundfile.write(folder / "002.flac", sound(1.0, 8), 16_000)
        assert prepare(folder, tmp_path / "p")["splits"]["train"]["clips"] == 3
        assert "corpus with 2 rows became corpus with 3" in caplog.text


def test_unfinished_work_of_other_arguments_is_dropped(corpus, unbroken, tmp_path, caplog):
    output = tmp_path / "p"
    prepare(corpus, output, "--num_shards", 2, "--shard_index", 0, "--max_duration_in_seconds", 3)
    with caplog.at_level("INFO"):
        prepare(corpus, output, "--validation_split_percentage", 10)
    assert "--max_duration_in_seconds was 3.0, is 40.0" in caplog.text
    without_locks = {name: data for name, data in contents(output).items() if not name.startswith(".lock")}
    assert without_locks == {name: data for name, data in contents(unbroken).items() if not name.startswith(".lock")}


@pytest.mark.parametrize("damage", ["removed", "cut"])
def test_records_without_a_readable_plan_are_not_trusted(damage, corpus, tmp_path, caplog):
    prepare(corpus, tmp_path / "p", "--num_shards", 2, "--shard_index", 0, "--max_duration_in_seconds", 3)
    plan = tmp_path / "p" / "unfinished" / "plan.json"
    plan.unlink() if damage == "removed" else plan.write_text(plan.read_text()[:40])
    with caplog.at_level("INFO"):
        prepare(corpus, tmp_path / "p", "--validation_split_percentage", 0)
    assert "its own record is not readable" in caplog.text
    assert min(open_prepared(str(tmp_path / "p")).load("train")["num_samples"]) > 4 * 16_000


def test_jobs_that_start_together_do_not_take_each_other_for_the_join(corpus, tmp_path):
    command = [sys.executable, "run_preprocessing.py", "--dataset_name", str(corpus), "--output_dir", str(tmp_path / "p"),
               "--preprocessing_num_workers", "1", "--num_shards", "4", "--shard_index"]
    jobs = [subprocess.Popen([*command, str(index)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for index in range(4)]
    ends = [(job.communicate()[1].splitlines()[-1], job.returncode) for job in jobs]
    assert [code for _, code in ends] == [0] * 4, ends
    assert sum(split["clips"] for split in prepare(corpus, tmp_path / "p")["splits"].values()) == 301


def test_nothing_usable_is_one_clear_error(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.wav").write_bytes(b"")
    (folder / "b.mp3").write_bytes(b"<html>")
    with pytest.raises(InputError, match=r"nothing usable: 2 clips left out \(unreadable 2\)"):
        prepare(folder, tmp_path / "p")
    with pytest.raises(InputError, match="holds no audio"):
        prepare(tmp_path / "p" / "unfinished", tmp_path / "q")


def test_a_crash_of_the_decoder_names_the_file(tmp_path):
    """A worker that is killed from outside in the middle of a shard, as a fatal fault in a C library would do it."""
    folder = write_folder(tmp_path / "corpus", [60.0], rate=48_000, ending="wav")
    for number in range(1, 64):
        shutil.copy(folder / "000.wav", folder / f"{number:03d}.wav")
    command = [sys.executable, "run_preprocessing.py", "--dataset_name", str(folder), "--output_dir", str(tmp_path / "p"),
               "--preprocessing_num_workers", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    shards = tmp_path / "p" / "unfinished" / "shards"
    while not (list(shards.glob("*.json")) and any(path.stat().st_size for path in shards.glob("*.at"))):
        assert process.poll() is None
        time.sleep(0.002)
    os.kill(int(children.read_text().split()[0]), signal.SIGSEGV)
    message = process.communicate(timeout=60)[1].splitlines()[-1]
    assert process.returncode == 2
    assert "a worker process died" in message
    assert str(folder) in message


def test_interrupts_end_cleanly_and_leave_no_worker(corpus, tmp_path):
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        output = tmp_path / str(code)
        command = [sys.executable, "run_preprocessing.py", "--dataset_name", str(corpus), "--output_dir", str(output)]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not list(output.glob("unfinished/shards/*.at")):
            assert process.poll() is None
            time.sleep(0.002)
        workers = children.read_text().split()
        process.send_signal(number)
        assert "Traceback" not in process.communicate(timeout=60)[1]
        assert process.returncode == code
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
        prepare(corpus, output)


def test_unfinished_work_is_dropped_whole_or_not_at_all(corpus, tmp_path):
    """A kill between the removal of the plan and that of the records would make them pass for those of the next plan."""
    program = ("import os, shutil, signal, sys\nfrom wavtrain.speech import prepared_directory\n"
               "def die(name, *_, **__):\n    os.remove(os.path.join(name, 'plan.json'))\n"
               "    os.kill(os.getpid(), signal.SIGKILL)\n"
               "shutil.rmtree = lambda name, *_, **__: die(name) if os.path.isdir(name) else None\n"
               "prepared_directory.drop_unfinished(sys.argv[1])")
    prepare(corpus, tmp_path / "p", "--num_shards", 1, "--shard_index", 0)
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "p")], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    report = prepare(corpus, tmp_path / "p", "--max_duration_in_seconds", 2, "--validation_split_percentage", 0)
    assert report["splits"]["train"]["clips"] > 3 * 300 - 1
    assert max(open_prepared(str(tmp_path / "p")).load("train")["num_samples"]) < 2.1 * 16_000
    assert not (tmp_path / "p" / "unfinished.dropped").exists()
