"""Checkpoints that are complete or absent, whatever ends their writer; arguments that come back as they were."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest
import torch

from wavtrain import InputError, arguments
from wavtrain.run_directory import (
    checkpoint_to_resume,
    read_progress,
    refuse_changed_arguments,
    save_checkpoint,
    step_name,
    write_arguments,
)


def save(output: Path, step: int, weights: str = "weights", keep: int = 3, write_state=None) -> str:
    def write(folder: str) -> None:
        os.makedirs(f"{folder}/model")
        Path(folder, "model", "weights").write_text(weights)

    return save_checkpoint(str(output), step, write_state or write, {"step": step, "loss": 0.5}, is_main=True,
                           wait_for_everyone=lambda: None, keep=keep)


def checkpoints(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").iterdir())


def latest(output: Path) -> str | None:
    return checkpoint_to_resume(str(output), "latest", overwrite=False)


def test_saved_whole_and_found_again(tmp_path):
    checkpoint = save(tmp_path, 1000)
    assert checkpoint == str(tmp_path / "checkpoints" / "step_00001000")
    assert latest(tmp_path) == checkpoint
    assert read_progress(checkpoint) == {"step": 1000, "loss": 0.5}
    assert Path(checkpoint, "model", "weights").read_text() == "weights"
    assert checkpoints(tmp_path) == ["step_00001000"]


def test_only_the_newest_are_kept_and_the_newest_is_by_number(tmp_path):
    for step in (5, 10, 99_999_999, 100_000_000):
        save(tmp_path, step, keep=2)
    assert checkpoints(tmp_path) == ["step_100000000", "step_99999999"]
    assert latest(tmp_path).endswith("step_100000000")


@pytest.mark.parametrize("error", [RuntimeError("bug"), OSError(errno.ENOSPC, "No space left on device"), SystemExit(143)])
def test_a_save_that_fails_leaves_the_earlier_checkpoints_and_no_part(tmp_path, error):
    save(tmp_path, 10)

    def write(folder: str) -> None:
        Path(folder, "half").write_text("half of the")
        raise error

    with pytest.raises(type(error)) as raised:
        save(tmp_path, 20, keep=1, write_state=write)
    assert raised.value is error
    assert checkpoints(tmp_path) == [step_name(10)]
    assert latest(tmp_path) == str(tmp_path / "checkpoints" / step_name(10))


def test_a_full_disk_is_an_oserror_whatever_the_library_calls_it(tmp_path):
    def write(folder: str) -> None:
        raise RuntimeError("Error while serializing: IoError(No space left on device (os error 28))")

    with pytest.raises(OSError, match="No space left") as raised:
        save(tmp_path, 10, write_state=write)
    assert raised.value.errno == errno.ENOSPC
    assert checkpoints(tmp_path) == []


def test_progress_that_is_no_strict_json_makes_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(str(tmp_path), 10, lambda folder: None, {"best": float("nan")}, is_main=True,
                        wait_for_everyone=lambda: None, keep=1)
    assert checkpoints(tmp_path) == []


def test_what_a_kill_left_is_never_latest_and_goes_with_the_next_save(tmp_path):
    save(tmp_path, 10)
    folder = tmp_path / "checkpoints"
    for name in ("step_00000020.part", "step_00000030.dropped"):  # the latter whole: killed before it was deleted
        (folder / name).mkdir()
        (folder / name / "progress.json").write_text("{}")
    (folder / step_name(40)).mkdir()  # no progress.json
    assert latest(tmp_path) == str(folder / step_name(10))
    for name in ("step_00000020.part", step_name(40)):
        with pytest.raises(InputError, match=r"--resume_from_checkpoint .* no complete checkpoint"):
            checkpoint_to_resume(str(tmp_path), str(folder / name), overwrite=False)
    (folder / "notes").mkdir()
    save(tmp_path, 40)
    assert checkpoints(tmp_path) == ["notes", step_name(10), step_name(40)]
    assert latest(tmp_path) == str(folder / step_name(40))


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    save(tmp_path, 10, "old", keep=1)
    checkpoint = save(tmp_path, 10, "new", keep=1)
    assert Path(checkpoint, "model", "weights").read_text() == "new"
    assert checkpoints(tmp_path) == [step_name(10)]


def test_a_kill_in_the_middle_of_a_replacement_loses_nothing(tmp_path):
    checkpoint = Path(save(tmp_path, 10, "old", keep=1))
    part = Path(save(tmp_path / "elsewhere", 10, "new"))
    checkpoint.rename(f"{checkpoint}.dropped")
    part.rename(f"{checkpoint}.part")
    assert latest(tmp_path) == str(checkpoint)
    assert (checkpoint / "model" / "weights").read_text() == "new"


def test_two_processes_write_into_one_checkpoint(tmp_path):
    (tmp_path / "checkpoints" / "step_00000010.part" / "old").mkdir(parents=True)
    barrier, found = threading.Barrier(2, timeout=20), {}

    def process(rank: int) -> None:
        def write(folder: str) -> None:
            assert not Path(folder, "old").exists()
            Path(folder, f"state_{rank}").write_text(str(rank))

        checkpoint = save_checkpoint(str(tmp_path), 10, write, {}, is_main=rank == 0, wait_for_everyone=barrier.wait, keep=1)
        found[rank] = sorted(path.name for path in Path(checkpoint).iterdir())  # it stands when anyone returns

    threads = [threading.Thread(target=process, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[rank] for rank in (0, 1)] == [["checksums.json", "progress.json", "state_0", "state_1"]] * 2


def test_accelerate_writes_and_reads_what_is_saved(tmp_path):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(torch.nn.Linear(2, 1))
    weight = model.weight.detach().clone()
    checkpoint = save(tmp_path, 3, write_state=accelerator.save_state)
    torch.nn.init.zeros_(model.weight)
    accelerator.load_state(checkpoint)
    assert torch.equal(model.weight, weight)


def test_a_directory_with_a_run_is_not_taken_by_accident(tmp_path):
    assert checkpoint_to_resume(str(tmp_path / "new"), None, overwrite=False) is None
    assert latest(tmp_path / "new") is None
    (tmp_path / "metrics.jsonl").write_text('{"phase": "train", "step": 1}\n')
    with pytest.raises(InputError, match=r"--resume_from_checkpoint latest .*--overwrite_output_dir"):
        checkpoint_to_resume(str(tmp_path), None, overwrite=False)
    assert latest(tmp_path) is None  # killed before its first checkpoint
    save(tmp_path / "other", 10)
    with pytest.raises(InputError, match=r"--output_dir .* holds a run already"):
        checkpoint_to_resume(str(tmp_path / "other"), None, overwrite=False)


def test_overwriting_removes_the_run_and_nothing_else(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    output = tmp_path / "output"
    output.mkdir()
    (output / "checkpoints").symlink_to(scratch)  # on a larger disk
    save(output, 10)
    (scratch / "step_00000020.part").mkdir()
    (output / "tensorboard").mkdir()
    for name in ("metrics.jsonl", "tensorboard/events", "notes.txt", "model.safetensors", "checkpoints/mine"):
        (output / name).write_text("")
    for resume in ("latest", str(output / "checkpoints" / step_name(10))):
        with pytest.raises(InputError, match="--overwrite_output_dir"):
            checkpoint_to_resume(str(output), resume, overwrite=True)
    assert checkpoint_to_resume(str(output), None, overwrite=True) is None
    left = sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())
    assert left == ["model.safetensors", "notes.txt"]
    assert [path.name for path in scratch.iterdir()] == ["mine"]
    assert checkpoint_to_resume(str(output), None, overwrite=False) is None


def test_a_checkpoint_by_name(tmp_path):
    first, second = save(tmp_path / "one", 10), save(tmp_path / "one", 20)
    assert checkpoint_to_resume(str(tmp_path / "one"), f"{second}/", overwrite=False) == second
    assert checkpoint_to_resume(str(tmp_path / "two"), first, overwrite=False) == first
    with pytest.raises(InputError, match="step_00000020 comes after it"):  # would be `latest` of another history
        checkpoint_to_resume(str(tmp_path / "one"), first, overwrite=False)
    with pytest.raises(InputError, match="no complete checkpoint"):
        checkpoint_to_resume(str(tmp_path / "two"), str(tmp_path / "one"), overwrite=False)


@pytest.mark.parametrize("content", [None, b"", b'{"step": 1', b"[1]", b"\xff\xfe"])
def test_damaged_progress_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "progress.json").write_bytes(content)
    with pytest.raises(InputError, match=r"progress\.json is missing or damaged"):
        read_progress(str(tmp_path))


def test_changed_arguments_are_named():
    saved = json.loads(json.dumps({"seed": 1, "names": ("a", "b"), "gone": 3, "logging_steps": 5, "config": "x.yaml"}))
    given = {"seed": 1, "names": ("a", "b"), "gone": 3, "logging_steps": 10, "config": None, "new": None}
    refuse_changed_arguments(saved, given, {"logging_steps"}, "here")
    with pytest.raises(InputError, match="here: --logging_steps was 5 and is 10: "):
        refuse_changed_arguments(saved, given, (), "here")
    other = {**given, "seed": 2, "names": ["a"], "new": "x", "gone": None}
    with pytest.raises(InputError) as raised:
        refuse_changed_arguments(saved, other, {"logging_steps"}, "here")
    said = str(raised.value)
    assert '--gone was 3 and is null, --names was ["a", "b"] and is ["a"], --new was null and is "x" and 1 more: ' in said


def test_arguments_come_back_from_the_file(tmp_path):
    parser = arguments.new_parser("a script")
    for name in ("language", "run_name", "report", "odd", "hub_token", "resume_from_checkpoint", "not_given"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--dataset_name", nargs="+", required=True)
    parser.add_argument("--splits", nargs="+", default=())
    parser.add_argument("--learning_rate", type=float)
    parser.add_argument("--max_grad_norm", type=float)
    parser.add_argument("--steps", type=int)
    for name in ("on", "off", "overwrite_output_dir"):
        parser.add_argument(f"--{name}", action="store_true")
    words = ["--language", "no", "--run_name", "12e3", "--report=-x: # y", "--odd", "naïve\u2028\x85 'q' \"d\" \udc80",
             "--dataset_name", "null", "1:30", "yes", "--learning_rate", "1e-5", "--max_grad_norm", "inf", "--steps", "7",
             "--on", "--hub_token", "hf_secret", "--overwrite_output_dir", "--resume_from_checkpoint", "latest"]
    args = arguments.parse(parser, words)
    write_arguments(str(tmp_path), {**vars(args), "dataset_name": tuple(args.dataset_name)})
    path = tmp_path / "arguments.yaml"
    assert "hf_secret" not in path.read_text()
    of_the_start = {"config": str(path), "hub_token": None, "resume_from_checkpoint": None, "overwrite_output_dir": False}
    assert vars(arguments.parse(parser, ["--config", str(path)])) == {**vars(args), **of_the_start}
