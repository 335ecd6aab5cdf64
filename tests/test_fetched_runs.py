"""What was pushed with its checkpoint goes on elsewhere, bit for bit."""

import errno
import os
import shutil

import pytest
import test_hub
from test_hub import PUSH, REPOSITORY, TOKEN, flags
from training_runs import assert_same_run, checkpoint, refusal

import run_ctc_finetuning as finetuning
import run_wav2vec2_pretraining_no_trainer as pretraining
from wavtrain import InputError
from wavtrain.checkpoint_files import damage
from wavtrain.hub.fetched_runs import fetch_run

places = test_hub.places


@pytest.mark.parametrize("script", [pretraining, finetuning])
def test_what_was_pushed_goes_on_elsewhere_bit_for_bit(places, hub, tmp_path, script):
    script.main(flags(places, tmp_path / "unbroken", script, max_train_steps=4))
    of_checkpoints = {"hub_strategy": "checkpoint", "hub_private_repo": True}
    script.main(flags(places, tmp_path / "here", script, max_train_steps=2, **of_checkpoints, **PUSH))
    shutil.rmtree(tmp_path / "here")
    words = flags(places, tmp_path / "there", script, max_train_steps=4, resume_from_checkpoint=REPOSITORY, **PUSH)
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
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["checkpoints"], "it can be tried again"


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
    assert not list((tmp_path / "there").glob("*.part"))
    assert not (tmp_path / "there" / "checkpoints").exists()


