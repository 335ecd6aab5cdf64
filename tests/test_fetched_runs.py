"""What was pushed with its checkpoint goes on elsewhere, bit for bit."""

import errno
import json
import os
import shutil
import threading

import pytest
import stand_in_hub
import test_hub
import yaml
from test_hub import PUSH, REPOSITORY, TOKEN, flags
from training_runs import assert_same_run, checkpoint, refusal, words_of

import run_ctc_finetuning as finetuning
import run_wav2vec2_pretraining_no_trainer as pretraining
from wavtrain import InputError
from wavtrain.checkpoint_files import damage
from wavtrain.hub.fetched_runs import FETCHING, PART, SOURCE, fetch_run, fetching, wait_for_fetch
from wavtrain.run_options import OF_THE_MACHINE

pytestmark = pytest.mark.usefixtures("quick_runs")
places = test_hub.places


@pytest.mark.parametrize("script", [pretraining, finetuning])
def test_what_was_pushed_goes_on_elsewhere_bit_for_bit(places, hub, tmp_path, script):
    script.main(flags(places, tmp_path / "unbroken", script, max_train_steps=4))
    of_checkpoints = {"hub_strategy": "checkpoint", "hub_private_repo": True}
    script.main(flags(places, tmp_path / "here", script, max_train_steps=2, **of_checkpoints, **PUSH))
    shutil.rmtree(tmp_path / "here")
    pushed = hub / "models" / REPOSITORY / "arguments.yaml"
    words = words_of({"config": pushed, "output_dir": tmp_path / "there", "max_train_steps": 4, "dataloader_num_workers": 0,
                      "report_to": "none", "resume_from_checkpoint": REPOSITORY, "hub_token": TOKEN})
    assert str(tmp_path) not in pushed.read_text()
    assert not OF_THE_MACHINE & yaml.safe_load(pushed.read_text()).keys()
    assert str(tmp_path) not in (pushed.parent / "last-checkpoint" / "progress.json").read_text()
    script.main(words)
    assert_same_run(tmp_path / "unbroken", tmp_path / "there", (".", "checkpoints/step_00000004"))
    assert "holds a run already: --resume_from_checkpoint latest" in refusal(script, words)


def fails(error):
    raise error


def test_checkpoints_on_another_disk(places, hub, tmp_path, monkeypatch):
    pretraining.main(flags(places, tmp_path / "here", max_train_steps=1, hub_strategy="checkpoint", **PUSH))
    (tmp_path / "disk").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "checkpoints").symlink_to(tmp_path / "disk")
    rename = os.rename

    def only_there(source, target):
        if "disk" in os.path.realpath(target) and "disk" not in os.path.realpath(source):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(os, "rename", only_there)
    fetch_run(REPOSITORY, TOKEN, str(tmp_path / "there"), "checkpoints")
    assert damage(str(tmp_path / "disk" / "step_00000001")) is None
    assert len(list((tmp_path / "disk").iterdir())) == 1
    full = OSError(errno.ENOSPC, "No space left on device")
    move = shutil.move
    monkeypatch.setattr(shutil, "move", lambda source, target, **more: fails(full) if "step_" in str(target) else move(
        source, target, **more))
    with pytest.raises(InputError):
        fetch_run(REPOSITORY, TOKEN, str(tmp_path / "full"), "checkpoints")
    assert {path.name for path in (tmp_path / "full").iterdir()} == {"checkpoints", PART}, "it can be tried again"
    assert not list((tmp_path / "full" / "checkpoints").iterdir())


def test_a_bad_token_is_not_shown(tmp_path):
    with pytest.raises(InputError, match="--hub_token: holds spaces") as caught:
        fetch_run(REPOSITORY, "hf_secret\n", str(tmp_path), "checkpoints")
    assert "hf_secret" not in str(caught.value)


@pytest.mark.parametrize(("path", "why"), [
    (None, "no such path, so taken for a Hub id): 404"), ("", "has no last-checkpoint/, which only --hub_strategy checkpoint"),
    ("optimizer.bin", "is damaged (optimizer.bin holds other bytes"), ("progress.json", "is damaged (progress.json ")])
def test_a_repository_without_a_whole_checkpoint_is_refused(places, hub, tmp_path, path, why):
    repository = shutil.copytree(places / "run", hub / "models" / REPOSITORY)
    if path:
        shutil.move(checkpoint(repository, 1), repository / "last-checkpoint")
        damaged = repository / "last-checkpoint" / path
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    name = "someone/none" if path is None else REPOSITORY
    words = flags(places, tmp_path / "there", resume_from_checkpoint=name, hub_token=TOKEN)
    assert why in refusal(pretraining, words)
    assert not (tmp_path / "there").exists()


@pytest.fixture
def pushed(places, hub):
    """A run of one step on the Hub, and its files."""
    repository = shutil.copytree(places / "run", hub / "models" / REPOSITORY)
    shutil.move(checkpoint(repository, 1), repository / "last-checkpoint")
    return repository


def fetched(folder):
    """What is in its place: all of it, and nothing else."""
    assert damage(str(checkpoint(folder, 1))) is None
    assert not {PART, FETCHING, SOURCE} & {path.name for path in folder.iterdir()}
    return [(folder / name).read_bytes() for name in ("model.safetensors", "metrics.jsonl")]


def test_a_broken_download_goes_on(pushed, hub, tmp_path):
    there = tmp_path / "there"
    stand_in_hub.trouble(hub, {"at": "/resolve/", "status": 418})
    with pytest.raises(InputError, match=r"--resume_from_checkpoint someone/model: .*418"):
        fetch_run(REPOSITORY, TOKEN, str(there), "checkpoints")
    assert list(there.iterdir()) == [], "that will not pass"
    stand_in_hub.trouble(hub, {"at": "GET /someone/model/resolve/" + stand_in_hub.COMMIT + "/metrics.jsonl", "status": 425})
    with pytest.raises(InputError, match=r"--resume_from_checkpoint someone/model: .*; what came is kept, and the same"):
        fetch_run(REPOSITORY, TOKEN, str(there), "checkpoints")
    assert [path.name for path in there.iterdir()] == [PART]
    whole = {str(path.relative_to(there / PART)) for path in (there / PART).rglob("*") if path.is_file()}
    assert {"model.safetensors", "last-checkpoint/optimizer.bin"} <= whole
    stand_in_hub.trouble(hub, {"at": ".safetensors", "status": 418}, {"at": "optimizer.bin", "status": 418})
    fetch_run(REPOSITORY, TOKEN, str(there), "checkpoints")
    assert fetched(there) == [(pushed / name).read_bytes() for name in ("model.safetensors", "metrics.jsonl")]


def test_what_was_fetched_of_another_run_is_dropped(pushed, hub, tmp_path):
    part = tmp_path / "there" / PART
    part.mkdir(parents=True)
    (part / "vocab.json").write_bytes(b"of another")
    (part / SOURCE).write_text(json.dumps({"repository": "someone/other", "revision": stand_in_hub.COMMIT}))
    fetch_run(REPOSITORY, TOKEN, str(tmp_path / "there"), "checkpoints")
    assert fetched(tmp_path / "there")[0] == (pushed / "model.safetensors").read_bytes()
    assert not (tmp_path / "there" / "vocab.json").exists()


def test_half_a_run_is_not_taken_for_a_whole_one(pushed, hub, tmp_path):
    """Where the Hub is lost the library may take the files that are there for all of them; a power cut may shorten one."""
    there, part = tmp_path / "there", tmp_path / "there" / PART
    shutil.copytree(pushed / "last-checkpoint", part / "last-checkpoint")
    (part / "model.safetensors").write_bytes(b"cut off")
    (part / SOURCE).write_text(json.dumps({"repository": REPOSITORY, "revision": stand_in_hub.COMMIT}))
    stand_in_hub.trouble(hub, {"at": "/tree/", "status": 418})
    with pytest.raises(InputError, match=r"--resume_from_checkpoint someone/model: .*(did not come; what came is kept|418)"):
        fetch_run(REPOSITORY, TOKEN, str(there), "checkpoints")
    assert {path.name for path in there.iterdir()} <= {PART}
    stand_in_hub.trouble(hub)
    fetch_run(REPOSITORY, TOKEN, str(there), "checkpoints")
    assert fetched(there)[0] == (pushed / "model.safetensors").read_bytes()


def test_others_wait_for_a_fetch_without_a_collective(tmp_path, monkeypatch):
    monkeypatch.setattr("wavtrain.hub.fetched_runs.SECONDS_BETWEEN_LOOKS", 0.01)
    wait_for_fetch(str(tmp_path / "none"))
    with fetching(str(tmp_path)):
        other = threading.Thread(target=wait_for_fetch, args=[str(tmp_path)])
        other.start()
        other.join(0.1)
        assert other.is_alive()
    other.join(10)
    assert not other.is_alive()
    assert list(tmp_path.iterdir()) == []
