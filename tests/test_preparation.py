"""Prepared directories as --dataset_name, caches of training scripts, several processes, locks, faulty corpora."""

import csv
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import ROOT, write_folder
from training_runs import codes, start

import run_preprocessing
import run_wav2vec2_pretraining_no_trainer as pretraining
from wavtrain import InputError
from wavtrain.durable_files import lock
from wavtrain.speech.clips import ClipLimits
from wavtrain.speech.manifests import CorpusOptions
from wavtrain.speech.preparation import already_prepared, cache_folder, prepared_speech
from wavtrain.speech.prepared_directory import open_prepared


@pytest.fixture
def corpus(tmp_path):
    return write_folder(tmp_path / "corpus", [1.0, 2.0, 3.0, 0.05])


def prepare(corpus, output, *flags):
    return run_preprocessing.main(["--dataset_name", str(corpus), "--output_dir", str(output), *map(str, flags)])


def test_a_training_script_prepares_under_its_cache_and_finds_it_again(corpus, tmp_path, caplog):
    argv = ["--dataset_name", str(corpus), "--cache_dir", str(tmp_path / "own"), "--preprocessing_only"]
    first = pretraining.main(argv)
    (folder,) = (tmp_path / "own").glob("prepared-corpus-*")
    made = os.stat(folder / "preparation.json").st_mtime_ns
    assert pretraining.main(argv) == first
    assert os.stat(folder / "preparation.json").st_mtime_ns == made
    pretraining.main([*argv, "--min_duration_in_seconds", "1.5"])
    assert len(list((tmp_path / "own").glob("prepared-corpus-*"))) == 2
    pretraining.main([*argv, "--overwrite_cache"])
    assert os.stat(folder / "preparation.json").st_mtime_ns > made


def test_a_prepared_directory_is_read_as_it_is(corpus, tmp_path):
    report = prepare(corpus, tmp_path / "p", "--min_duration_in_seconds", 1.5)
    shutil.rmtree(corpus)
    argv = ["--dataset_name", str(tmp_path / "p"), "--preprocessing_only"]
    assert pretraining.main(argv) == report
    assert pretraining.main([*argv, "--min_duration_in_seconds", "1.5", "--dataset_split_names", "train"]) == report
    with pytest.raises(InputError, match=r"--min_duration_in_seconds 2.0: .* prepared already, with 1.5"):
        pretraining.main([*argv, "--min_duration_in_seconds", "2"])
    with pytest.raises(InputError, match="--text_column_name has no effect"):
        pretraining.main([*argv, "--text_column_name", "words"])
    assert open_prepared(str(tmp_path / "p")).load("train").num_rows == 2
    assert open_prepared(str(tmp_path / "p")).load("validation") is None


def test_a_prepared_directory_can_be_prepared_again_and_joined_with_others(corpus, tmp_path):
    prepare(corpus, tmp_path / "p")
    report = prepare(tmp_path / "p", tmp_path / "q", "--min_duration_in_seconds", 1.5)
    assert report["splits"]["train"]["clips"] == 2
    originals = open_prepared(str(tmp_path / "p")).load("train")[1:]["audio"]
    assert open_prepared(str(tmp_path / "q")).load("train")[:]["audio"] == originals
    other = write_folder(tmp_path / "other", [4.0])
    both = run_preprocessing.main(["--dataset_name", str(corpus), str(other), "--output_dir", str(tmp_path / "both")])
    assert both["splits"]["train"]["clips"] == 4
    assert open_prepared(str(tmp_path / "both")).load("train")["corpus"] == ["corpus"] * 3 + ["other"]


def test_incomplete_damaged_and_foreign_directories_are_refused(corpus, tmp_path):
    prepare(corpus, tmp_path / "p", "--num_shards", 2, "--shard_index", 0)
    with pytest.raises(InputError, match="its preparation is not finished"):
        already_prepared(CorpusOptions((str(tmp_path / "p"),)), ClipLimits(), None)
    prepare(corpus, tmp_path / "p")
    (tmp_path / "p" / "preparation.json").write_text('{"fingerpr')
    with pytest.raises(InputError, match=r"preparation.json: is damaged"):
        already_prepared(CorpusOptions((str(tmp_path / "p"),)), ClipLimits(), None)
    assert prepare(corpus, tmp_path / "p")["splits"]["train"]["clips"] == 3
    (tmp_path / "mine" / "train").mkdir(parents=True)
    with pytest.raises(InputError, match="holds train/, which is no preparation"):
        prepare(corpus, tmp_path / "mine")


@pytest.mark.parametrize("place", ["/proc/x", "file/x", "file"])
def test_an_output_dir_that_cannot_be_made(corpus, tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="no folder can be made there"):
        prepare(corpus, tmp_path / place)


def test_validation_is_given_or_held_out_but_not_both(corpus, tmp_path):
    splits = tmp_path / "splits"
    write_folder(splits / "train", [1.0, 2.0])
    write_folder(splits / "dev", [3.0])
    report = prepare(splits, tmp_path / "p", "--validation_split_names", "dev")
    again = ["--dataset_name", str(tmp_path / "p"), "--preprocessing_only", "--validation_split_names"]
    assert pretraining.main([*again, "dev"]) == report  # a recipe's config may be given what was prepared with its flags
    with pytest.raises(InputError, match="--validation_split_names has no effect"):
        pretraining.main([*again, "test"])
    assert {split: total["clips"] for split, total in report["splits"].items()} == {"train": 2, "validation": 1}
    with pytest.raises(InputError, match="--validation_split_names says already what is held out"):
        prepare(splits, tmp_path / "q", "--validation_split_names", "dev", "--validation_split_percentage", 5)


def test_two_processes_one_prepares_and_the_other_waits(corpus, tmp_path):
    """The second looks on until the directory is complete, although it began first."""
    corpus_options = CorpusOptions((str(corpus),))
    folder = cache_folder(str(tmp_path / "own"), corpus_options, ClipLimits(), None)
    seen = []
    waiting = threading.Thread(target=lambda: seen.append(
        prepared_speech(corpus_options, ClipLimits(), folder, may_prepare=False).report))
    waiting.start()
    report = prepared_speech(corpus_options, ClipLimits(), folder).report
    waiting.join(timeout=30)
    assert seen == [report]


def test_two_processes_of_one_launch(corpus, tmp_path):
    """The first launch prepares; the second, and one of accelerate (with --cpu one process), find it prepared."""
    argv = ["--dataset_name", str(corpus), "--cache_dir", str(tmp_path / "own"), "--preprocessing_only"]
    for said in (tmp_path / "first", tmp_path / "second"):
        assert codes(start(pretraining, argv, 2, SAID=str(said))) == [0, 0]
        assert said.read_text().count("train                3 clips") == 1
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu",
              "run_wav2vec2_pretraining_no_trainer.py", *argv]
    result = subprocess.run(launch, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("train                3 clips") == 1
    (folder,) = (tmp_path / "own").glob("prepared-corpus-*")
    assert len(open_prepared(str(folder)).load("train")) == 3


def test_a_second_run_in_the_same_directory_is_refused(corpus, tmp_path):
    os.makedirs(tmp_path / "p")
    held = lock(str(tmp_path / "p" / ".lock"))
    with pytest.raises(InputError, match=rf"--output_dir .*another run is preparing it \(process {os.getpid()} on "):
        prepare(corpus, tmp_path / "p")
    with pytest.raises(InputError, match=r"a call without --shard_index \(process \d+ on .*\) is still at work"):
        prepare(corpus, tmp_path / "p", "--num_shards", 2, "--shard_index", 1)
    held.release()
    of_a_job = lock(str(tmp_path / "p" / ".lock-1-of-2"))
    with pytest.raises(InputError, match=r"job 1 of 2 \(process .*\) is still at work"):
        prepare(corpus, tmp_path / "p")
    prepare(corpus, tmp_path / "p", "--num_shards", 2, "--shard_index", 0)
    with pytest.raises(InputError, match=r"job 1 of 2 .* is still at work in it on other .*--max_duration_in_seconds was 40"):
        prepare(corpus, tmp_path / "p", "--num_shards", 2, "--shard_index", 0, "--max_duration_in_seconds", 2)
    of_a_job.release()
    assert prepare(corpus, tmp_path / "p")["splits"]["train"]["clips"] == 3


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    corpus = write_folder(tmp_path / "corpus", [20.0] * 130)
    small = tmp_path / "small"
    small.mkdir()
    command = f"{sys.executable} run_preprocessing.py --dataset_name {corpus} --output_dir {small}/p"
    program = (f"mount -t tmpfs -o size=6m tmpfs {small} || exit 77\n{command} 2>{tmp_path}/first; echo $?\n"
               f"ls {small}/p/unfinished/train; mount -o remount,size=900m {small}\n{command} 2>{tmp_path}/second\n"
               f"cp -r {small}/p {tmp_path}/p")
    result = subprocess.run(["unshare", "-m", "sh", "-c", program], cwd=ROOT, capture_output=True, text=True)
    if result.returncode in (1, 77):
        pytest.skip("mounting is not allowed here")
    assert result.stdout.startswith("1\n")
    assert ".part" not in result.stdout  # what was half written gives its room back
    last = (tmp_path / "first").read_text().splitlines()[-1]
    assert "No space left on device" in last
    assert "Traceback" not in (tmp_path / "first").read_text()
    splits = json.loads((tmp_path / "p" / "preparation.json").read_text())["splits"]
    assert sum(split["clips"] for split in splits.values()) == 130


def test_a_cache_that_cannot_be_written_serves(corpus, tmp_path):
    argv = ["--dataset_name", str(corpus), "--cache_dir", str(tmp_path / "own"), "--preprocessing_only"]
    report = pretraining.main(argv)
    command = f"{sys.executable} run_wav2vec2_pretraining_no_trainer.py {' '.join(argv)}"
    program = f"mount --bind {tmp_path}/own {tmp_path}/own && mount -o remount,ro,bind {tmp_path}/own || exit 77\n{command}"
    result = subprocess.run(["unshare", "-m", "sh", "-c", program], cwd=ROOT, capture_output=True, text=True)
    if result.returncode == 77 or "unshare" in result.stderr:
        pytest.skip("mounting is not allowed here")
    assert result.returncode == 0, result.stderr
    assert f"{report['splits']['train']['clips']} clips" in result.stdout


def cases(kind):
    path = ROOT.parent / "shared" / "data" / "broken" / "cases.csv"
    return [row["name"] for row in csv.DictReader(path.open()) if row["kind"] == kind] if path.exists() else []


KEPT = {"ok_reference.wav", "list_chunk_first.wav", "silence_then_speech.wav", "dither_only.wav", "clipped.wav", "rate_96k.wav",
        "six_channels.wav", "flac_named.wav", "wav_named.mp3", "no_extension"}


UNUSABLE = {"all_files_missing": "missing_file 2", "latin1": "line 2: is not UTF-8", "invalid_utf8": "line 3: is not UTF-8",
            "semicolons": "separated by ';'", "header_only": "has no rows", "empty_file": "is empty",
            "truncated_jsonl": "line 3: the last line is cut off"}


def test_faulty_files_are_kept_or_named(shared_data, tmp_path):
    report = prepare(shared_data / "broken" / "files", tmp_path / "p", "--validation_split_percentage", 0)
    kept = set(open_prepared(str(tmp_path / "p")).load("train")["utterance_id"])
    rejected = [json.loads(line) for line in (tmp_path / "p" / "rejected.jsonl").read_text().splitlines()]
    assert kept == KEPT
    assert {Path(each["source"]).name for each in rejected} == set(cases("file")) - KEPT
    assert sum(count["clips"] for count in report["rejected"].values()) == len(rejected)


@pytest.mark.parametrize("name", cases("table"))
def test_faulty_tables_end_with_clips_or_one_line(name, shared_data, tmp_path):
    folder = shared_data / "broken" / "tables" / name
    if name in UNUSABLE:
        with pytest.raises(InputError) as caught:
            prepare(folder, tmp_path / "p")
        assert name in str(caught.value)
        assert UNUSABLE[name] in str(caught.value)
        assert "\n" not in str(caught.value)
        return
    report = prepare(folder, tmp_path / "p", "--validation_split_percentage", 0)
    files = [path for path in folder.iterdir() if path.suffix in (".flac", ".wav")]
    kept = report["splits"]["train"]["clips"]
    rejected = sum(count["clips"] for count in report["rejected"].values())
    assert kept > 0
    assert kept + rejected >= len(files)


MEGABYTES_PER_HOUR = {"fsdd_sequences": 45, "librispeech_en": 65, "librispeech_en_unlabeled": 66, "ljspeech_en": 72,
                      "kerstin_de": 69, "emodb_de": 77, "yesno": 50, "misc": 69}  # HF's float32 takes 230


@pytest.mark.parametrize("name", MEGABYTES_PER_HOUR)
def test_every_set_is_prepared_whole_and_small(name, shared_data, tmp_path):
    report = prepare(shared_data / name, tmp_path / "p", "--max_duration_in_seconds", 100, "--validation_split_percentage", 0)
    places = (shared_data / name / "train", shared_data / name / "test", shared_data / name)
    folder = next(place for place in places if place.is_dir())
    with open(folder / "metadata.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    train = open_prepared(str(tmp_path / "p")).load("train")
    assert report["rejected"] == {}
    assert train["utterance_id"] == [row["file_name"] for row in rows]
    assert [text or "" for text in train["text"]] == [row.get("text", row.get("sentence", "")) for row in rows]
    on_disk = sum(path.stat().st_size for path in (tmp_path / "p").rglob("*") if path.is_file())
    assert on_disk / 1e6 / report["splits"]["train"]["hours"] < MEGABYTES_PER_HOUR[name]
