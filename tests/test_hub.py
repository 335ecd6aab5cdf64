"""What a run pushes and when, and what it does when it cannot."""

import hashlib
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import huggingface_hub
import psutil
import pytest
import stand_in_hub
from accelerate import Accelerator
from conftest import ROOT, write_folder, write_model
from corpora import write_table
from training_runs import (
    SMALL,
    assert_same_run,
    checkpoint,
    refusal,
    words_of,
)
from transformers import AutoModelForPreTraining

import run_ctc_finetuning as finetuning
import run_preprocessing
import run_wav2vec2_pretraining_no_trainer as pretraining
from wavtrain import InputError
from wavtrain.checkpoint_files import damage
from wavtrain.doors import refuse_closed_doors
from wavtrain.hub import uploads
from wavtrain.hub.repository import Repository, in_one_line
from wavtrain.run_options import RunOptions

pytestmark = pytest.mark.usefixtures("quick_runs")
TOKEN, REPOSITORY = stand_in_hub.TOKEN, "someone/model"
PUSH = {"push_to_hub": True, "hub_model_id": REPOSITORY, "hub_token": TOKEN}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A prepared corpus with text, and a model."""
    folder = tmp_path_factory.mktemp("hub")
    names = "".join(f"{number:03d}.flac,ab c\n" for number in range(6))
    write_table(write_folder(folder / "corpus", [1.0, 1.5, 2.0, 1.2, 1.1, 1.3]) / "metadata.csv", f"file_name,text\n{names}")
    write_model(folder / "model")
    run_preprocessing.main(words_of({"dataset_name": folder / "corpus", "output_dir": folder / "prepared",
                                     "preprocessing_num_workers": 1, "validation_split_percentage": 30}))
    pretraining.main(flags(folder, folder / "run", max_train_steps=1))
    return folder


def flags(places, output_dir, script=pretraining, **more):
    model = {"model_name_or_path" if script is pretraining else "config_name": places / "model"}
    return words_of({**SMALL, **model, "dataset_name": places / "prepared", "output_dir": output_dir, "saving_steps": 1,
                     "lr_scheduler_type": "constant", "max_train_steps": 3, **more})


def messages(hub):
    return [commit["message"] for commit in stand_in_hub.commits(hub)]


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


# When


def test_at_the_end_alone(places, hub, tmp_path):
    pretraining.main(flags(places, tmp_path / "run", **PUSH, hub_strategy="end"))
    pretraining.main(flags(places, tmp_path / "run", **PUSH, hub_strategy="end", resume_from_checkpoint="latest"))
    assert messages(hub) == ["step 3", "step 3"], "also of a run that was at its end"
    pushed = {path.name for path in (hub / "models" / REPOSITORY).iterdir()}
    assert pushed == {"model.safetensors", "config.json", "preprocessor_config.json", "arguments.yaml", "metrics.jsonl",
                      "training_curves.png", "run.json", "README.md"}
    assert (tmp_path / "run" / "README.md").read_bytes() == (hub / "models" / REPOSITORY / "README.md").read_bytes()
    assert not list((tmp_path / "run").glob("*.part"))


def test_every_save_does_not_wait_and_skips_while_one_is_at_work(places, hub, tmp_path):
    stand_in_hub.trouble(hub, {"at": "PUT", "seconds": 4, "times": 1})
    pretraining.main(flags(places, tmp_path / "run", **PUSH, max_train_steps=4))
    assert messages(hub) == ["step 1", "step 4"]
    for commit, step in zip(stand_in_hub.commits(hub), (1, 4), strict=True):
        assert commit["files"]["model.safetensors"] == digest(checkpoint(tmp_path / "run", step) / "model.safetensors")


def test_a_better_model_is_pushed_and_no_other(places, hub, tmp_path):
    as_it_began = {"learning_rate": 1e-30, "max_train_steps": 4}  # no step is better than the first
    finetuning.main(flags(places, tmp_path / "run", finetuning, **PUSH, **as_it_began, hub_strategy="best"))
    assert messages(hub) == ["step 1", "step 4"]
    assert len({commit["files"]["model.safetensors"] for commit in stand_in_hub.commits(hub)}) == 1
    assert not {"rejected.jsonl", "training_text.txt"} & {path.name for path in (hub / "models" / REPOSITORY).iterdir()}


def test_a_push_is_of_one_moment_though_checkpoints_are_dropped_while_it_goes_on(places, hub, tmp_path):
    stand_in_hub.trouble(hub, {"at": "PUT", "seconds": 0.3})
    more = {"hub_strategy": "checkpoint", "max_train_steps": 12, "save_total_limit": 1}
    pretraining.main(flags(places, tmp_path / "run", **PUSH, **more))
    pushed = [commit["files"] for commit in stand_in_hub.commits(hub)]
    assert len(pushed) > 1
    for files in pushed:
        assert files["model.safetensors"] == files["last-checkpoint/model.safetensors"]
    assert len({files["model.safetensors"] for files in pushed}) == len(pushed)
    assert damage(str(hub / "models" / REPOSITORY / "last-checkpoint")) is None


def test_the_model_of_a_run_that_was_overwritten_is_not_pushed(places, hub, tmp_path):
    finetuning.main(flags(places, tmp_path / "run", finetuning, max_train_steps=1))
    old = digest(tmp_path / "run" / "model.safetensors")
    later = {"seed": 5, "eval_steps": 3, "overwrite_output_dir": True}  # the first save has no model yet
    finetuning.main(flags(places, tmp_path / "run", finetuning, **PUSH, **later))
    assert messages(hub) == ["step 3"]
    assert stand_in_hub.commits(hub)[0]["files"]["model.safetensors"] != old


def test_a_snapshot_follows_symbolic_links(tmp_path):
    (tmp_path / "blob").write_text("speech")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "data").symlink_to("../blob")
    (tmp_path / "stage" / "train").mkdir(parents=True)
    uploads.linked(str(tmp_path / "snapshot" / "data"), str(tmp_path / "stage" / "train" / "data"))
    assert (tmp_path / "stage" / "train" / "data").read_text() == "speech"


# What goes wrong


@pytest.mark.parametrize("what", [{"at": "/commit/", "status": 503}, {"at": "POST /api/repos/create"}])
def test_what_passes_is_tried_again(places, hub, tmp_path, what, capfd, caplog):
    stand_in_hub.trouble(hub, {**what, "times": 2})
    pretraining.main(flags(places, tmp_path / "run", **PUSH, hub_strategy="end"))
    assert messages(hub) == ["step 3"]
    assert "http://127" in capfd.readouterr().out
    assert ("the Hub cannot be reached now" in caplog.text) == ("create" in what["at"])


@pytest.mark.parametrize("what", [{"at": "PUT", "status": 413}, {"at": "/commit/"}])
def test_a_failed_upload_loses_nothing(places, hub, tmp_path, what, caplog):
    stand_in_hub.trouble(hub, what)
    pretraining.main(flags(places, tmp_path / "run", **PUSH, max_train_steps=1))
    assert messages(hub) == []
    assert caplog.records[-1].getMessage().startswith("step 1 is not on the Hub (someone/model: ")
    assert "\x1b" not in caplog.text
    assert_same_run(places / "run", tmp_path / "run")


def test_the_last_line_pushes_what_could_not_be_pushed(places, hub, tmp_path, monkeypatch, caplog):
    stand_in_hub.trouble(hub, {"at": "/commit/", "status": 403})
    run, repository = tmp_path / "a run", hub / "models" / REPOSITORY
    pretraining.main(flags(places, run, **PUSH, hub_strategy="checkpoint", max_train_steps=2))
    stand_in_hub.trouble(hub)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for command in caplog.records[-1].getMessage().splitlines()[-1].split(" && "):
        words = shlex.split(command)
        subprocess.run([f"{os.path.dirname(sys.executable)}/{words[0]}", *words[1:]], check=True, capture_output=True)
    assert digest(repository / "model.safetensors") == digest(run / "model.safetensors")
    assert damage(str(repository / "last-checkpoint")) is None
    here = {path.name for path in run.iterdir() if path.is_file()} - {".run.lock"}
    assert {path.name for path in repository.iterdir()} == here | {"last-checkpoint"}
    assert str(run) not in (repository / "arguments.yaml").read_text()


def test_a_refused_token_is_told_before_the_training(places, hub, tmp_path):
    for token in ("hf_bad", "hf bad", "hf_b\u00e4d"):
        said = refusal(pretraining, flags(places, tmp_path / "run", **{**PUSH, "hub_token": token}))
        assert said.startswith("--push_to_hub someone/model: cannot be pushed to (") or said.startswith("--hub_token: ")
        assert token not in said
    assert not (tmp_path / "run").exists()
    assert refusal(pretraining, flags(places, tmp_path / "run", **{**PUSH, "hub_model_id": "a/b/c"}))


@pytest.mark.parametrize("check_only", [False, True])
@pytest.mark.parametrize(("more", "why"), [
    ({"hub_token": "hf_bad"}, "--push_to_hub someone/model: cannot be pushed to ("),
    ({"hub_model_id": "others/model"}, "--push_to_hub others/model: cannot be pushed to (403 Forbidden"),
    ({"push_to_hub": False, "resume_from_checkpoint": "someone/none"}, "so taken for a Hub id): 404"),
    ({"push_to_hub": False, "resume_from_checkpoint": "someone/none"}, "if it is private, --hub_token or `hf auth login`"),
    ({"resume_from_checkpoint": "others/model"}, "others/model: that repository has no last-checkpoint/")], ids=str)
def test_closed_doors_are_told_before_the_preparation(places, hub, tmp_path, more, why, check_only):
    (hub / "models" / "others" / "model").mkdir(parents=True)
    words = flags(places, tmp_path / "run", **{**PUSH, **more}, check_only=check_only)
    assert why in refusal(pretraining, [*words, "--dataset_name", "/nowhere/corpus"])
    assert not (tmp_path / "run").exists()
    assert not (hub / "models" / "someone").exists()


def look(output_dir, **more):
    refuse_closed_doors(RunOptions(str(output_dir), **{**PUSH, **more}), Accelerator(cpu=True))


def test_a_look_alone_makes_no_repository(hub, tmp_path):
    for name in ("someone/model", "model", "some_lab/model"):
        look(tmp_path / "run", hub_model_id=name, check_only=True)
    with pytest.raises(InputError, match="theirs/model: is not there, and someone can make no repository of theirs: name"):
        look(tmp_path / "run", hub_model_id="theirs/model", check_only=True)
    with pytest.raises(InputError, match="someone/model: is not there, and a token that may only read cannot make it"):
        look(tmp_path / "run", hub_token=stand_in_hub.READER, check_only=True)
    assert not (hub / "models").exists()
    look(tmp_path / "run", hub_model_id="model")
    assert (hub / "models" / "someone" / "model").exists()


@pytest.mark.parametrize("check_only", [False, True])
def test_without_a_network_the_look_says_so(tmp_path, monkeypatch, caplog, check_only):
    stand_in_hub.reach("http://127.0.0.1:9", tmp_path, monkeypatch)
    look(tmp_path / "run", check_only=check_only)
    (record,) = caplog.records
    assert record.getMessage().startswith("--push_to_hub someone/model: the Hub cannot be reached now (")
    with pytest.raises(InputError, match=r"--resume_from_checkpoint someone/model .no such path, so taken for a Hub id.: "):
        look(tmp_path / "run", resume_from_checkpoint=REPOSITORY)
    look(tmp_path / "run", resume_from_checkpoint=REPOSITORY, preprocessing_only=True)


def test_a_hub_out_of_reach_stops_no_run(places, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    stand_in_hub.reach("http://127.0.0.1:9", tmp_path, monkeypatch)
    assert pretraining.main(flags(places, tmp_path / "run", **PUSH, max_train_steps=2))
    assert "cannot be reached now" in caplog.records[0].getMessage()
    assert re.search(r"step 2 is not on the Hub .*\n  hf upload someone/model ", caplog.text)
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_signal_does_not_wait_for_an_upload(places, hub, tmp_path):
    stand_in_hub.trouble(hub, {"at": "PUT", "seconds": 60})
    command = [sys.executable, "run_wav2vec2_pretraining_no_trainer.py",
               *flags(places, tmp_path / "run", **PUSH, max_train_steps=100_000, saving_steps=5)]
    with open(tmp_path / "said", "w") as said:
        process = psutil.Popen(list(map(str, command)), cwd=ROOT, stdout=said, stderr=said)
    deadline = time.monotonic() + 60
    while not (found := [each for each in process.children(recursive=True) if "wavtrain.hub.uploads" in each.cmdline()]):
        assert process.poll() is None, (tmp_path / "said").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert psutil.wait_procs(found, timeout=10)[1] == []
    assert "is not on the Hub (someone/model: stopped before its end)" in (tmp_path / "said").read_text()
    assert not list((tmp_path / "run").glob("*.part"))


def test_an_upload_ends_with_a_run_that_is_killed(hub, tmp_path):
    stand_in_hub.trouble(hub, {"at": "create", "seconds": 60})
    code = ("import sys, time; from wavtrain.hub import repository, uploads; "
            f"there = repository.Repository({REPOSITORY!r}, 'model', {TOKEN!r}, False); "
            f"one = uploads.Uploads(there, {str(tmp_path / 'stage')!r}); "
            "one.begin('x', lambda folder: None); print(one._process.pid, flush=True); time.sleep(60)")
    run = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    upload = psutil.Process(int(run.stdout.readline()))
    assert upload.is_running()
    run.kill()
    run.communicate()
    assert psutil.wait_procs([upload], timeout=20)[1] == []


def test_a_process_that_dies_is_a_fault_like_any_other(tmp_path):
    trial = uploads.Uploads(Repository(REPOSITORY, "model", None, False), str(tmp_path / "stage"))
    trial.begin("x", lambda folder: None)
    trial._process.kill()
    assert trial.outcome()["fault"] == "the upload ended with code -9"
    assert trial.outcome() is None


# Cards


def test_a_card_that_was_edited_there_stays(places, hub, tmp_path, caplog):
    pretraining.main(flags(places, tmp_path / "run", **PUSH, hub_strategy="end"))
    card = hub / "models" / REPOSITORY / "README.md"
    card.write_text(card.read_text().replace("## How good", "Written by a person.\n\n## How good"))
    pretraining.main(flags(places, tmp_path / "again", **PUSH, hub_strategy="end"))
    assert "Written by a person" in card.read_text()
    assert "README.md was edited on the Hub" in caplog.text
    assert digest(card.parent / "metrics.jsonl") == digest(tmp_path / "again" / "metrics.jsonl")


def test_metadata_that_the_hub_refuses_keeps_no_model_from_it(places, hub, tmp_path, caplog):
    pretraining.main(flags(places, tmp_path / "run", **PUSH, hub_strategy="end", license="apache-3.0"))
    assert {path.name for path in (hub / "models" / REPOSITORY).iterdir()} >= {"model.safetensors", "run.json"}
    assert not (hub / "models" / REPOSITORY / "README.md").exists()
    assert 'README.md is not pushed, the Hub refuses it: Invalid metadata in README.md. - "license" must be' in caplog.text


# As a user


def test_a_pushed_run_lies_in_the_repository_and_the_token_nowhere(places, hub, tmp_path, capfd):
    stand_in_hub.trouble(hub, {"at": "/commit/", "status": 500, "times": 1})
    pretraining.main(flags(places, tmp_path / "run", **PUSH, hub_private_repo=True))
    said = capfd.readouterr()
    repository = hub / "models" / REPOSITORY
    assert digest(repository / "model.safetensors") == digest(tmp_path / "run" / "model.safetensors")
    assert [line.partition(": ")[2] for line in said.out.splitlines()[-3:]] == [
        "the model is there, training_curves.png shows how; run_ctc_finetuning.py goes on", "", "the model is there"]
    assert TOKEN not in said.out + said.err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    AutoModelForPreTraining.from_pretrained(repository)
    with pytest.raises(huggingface_hub.errors.RepositoryNotFoundError):  # it is private
        huggingface_hub.HfApi(token=False).model_info(REPOSITORY)
    assert huggingface_hub.HfApi(token=TOKEN).model_info(REPOSITORY).private


def test_a_token_in_a_fault_is_not_shown():
    error = ValueError(f"Illegal header value b'Bearer {TOKEN}' \x1b[31m\n more")
    assert in_one_line(error, TOKEN) == "Illegal header value b'Bearer ...' [31m more"
