"""FSDP2 and DeepSpeed make the runs of one process, with gloo on a CPU; what cannot be is refused; configs are as they say."""

import copy
import importlib
import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import socket

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import patch_environment
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from conftest import ROOT, write_model
from test_run_ctc_finetuning import prepare
from torch.distributed.fsdp import FSDPModule
from training_runs import (
    SERVER,
    SMALL,
    assert_close_run,
    assert_same_run,
    checkpoint,
    codes,
    column,
    refusal,
    start,
    steps_saved,
    words_of,
)
from transformers import Wav2Vec2ForCTC, Wav2Vec2ForPreTraining, Wav2Vec2Model

import run_ctc_finetuning as finetuning
import run_wav2vec2_pretraining_no_trainer as pretraining
from wavtrain import InputError
from wavtrain.accumulation import FiniteUpdates, clipped, synchronised_if
from wavtrain.engine import accelerator_for, gathered, save_state, spread
from wavtrain.models import encoders
from wavtrain.models.contrastive import ObjectiveSettings
from wavtrain.optimizers import OptimizerOptions, adamw
from wavtrain.zero import refusals_of_zero

pytestmark = pytest.mark.usefixtures("quick_runs")
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
LIKE_ZERO_2 = {"FSDP_RESHARD_AFTER_FORWARD": "false"}
BY_DEEPSPEED = {"ACCELERATE_USE_FSDP": "false", "ACCELERATE_USE_DEEPSPEED": "true",
                "TORCHDYNAMO_DISABLE": "1"}  # it would import torch's compiler, which takes seconds
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs requirements-deepspeed.txt")
OF_A_RUN = {**SMALL, "max_train_steps": 3, "saving_steps": 1, "eval_steps": 3, "seed": 3, "max_grad_norm": 2.0}
OF_CTC = {"mask_time_prob": 0.3, "mask_time_length": 4, "freeze_finetune_updates": 1}
CONFIGS = sorted((ROOT / "configs" / "accelerate").iterdir())
OPTIONS = OptimizerOptions(0.1, 0.01, True, 0.9, 0.98, 1e-6)
NOT_ASKED = ("OFFLOAD_PARAMS", "ACTIVATION_CHECKPOINTING", "CPU_RAM_EFFICIENT_LOADING")
LAST = ("checkpoints/step_00000003",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Speech with text, and a model with dropout and layerdrop."""
    folder = tmp_path_factory.mktemp("engines")
    prepare(folder, [f"ab b{'a' * (n % 3)}" for n in range(10)], ["ab", "ba a", "b"])
    write_model(folder / "tiny", layerdrop=0.3, hidden_dropout=0.1)
    return folder


@pytest.fixture(scope="module")
def command(folder):
    """(script, output_dir, **flags) -> the words of a command line; an epoch is 5 micro-batches, so updates are incomplete."""
    def words(script, output_dir, **flags):
        own = {"config_name": folder / "tiny", **OF_CTC} if script is finetuning else {"model_name_or_path": folder / "tiny"}
        return words_of({"dataset_name": folder / "prepared", **OF_A_RUN, **own, "output_dir": output_dir, **flags})

    return words


def ended_well(script, argv, num_processes, **variables):
    environment = {**SHARDED, **variables} if num_processes > 1 else {}
    assert codes(start(script, argv, num_processes, **environment)) == [0] * num_processes


def goes_on(script, begun, output_dir, num_processes, command, environment=(), done=1, **flags):
    """After the first checkpoint or a later one, with the other engine or the same."""
    shutil.copytree(begun, output_dir)
    for step in steps_saved(output_dir)[done:]:
        shutil.rmtree(checkpoint(output_dir, step))
    argv = command(script, output_dir, gradient_accumulation_steps=4 // num_processes, resume_from_checkpoint="latest", **flags)
    ended_well(script, argv, num_processes, **dict(environment))


@pytest.fixture(scope="module")
def one(command, tmp_path_factory):
    """The pretraining of one process."""
    output_dir = tmp_path_factory.mktemp("one") / "run"
    pretraining.main(command(pretraining, output_dir, gradient_accumulation_steps=4))
    return output_dir


def test_sharded_pretraining_is_that_of_one_process(command, one, tmp_path):
    """Gradient scale, accumulation, clipping, layerdrop, validation; to the bit if the same engine goes on."""
    two = tmp_path / "two"
    ended_well(pretraining, command(pretraining, two, gradient_accumulation_steps=2), 2)
    assert_close_run(two, one, (".", *LAST))
    assert max(column(one, "gradient_norm")) > OF_A_RUN["max_grad_norm"], "nothing was clipped"
    assert Wav2Vec2ForPreTraining.from_pretrained(two, output_loading_info=True)[1]["missing_keys"] == set()
    whole = {path.name for path in checkpoint(two, 3).iterdir()}
    assert {path.name for path in checkpoint(one, 3).iterdir()} - whole == {"random_states_0.pkl"}
    goes_on(pretraining, two, tmp_path / "again", 2, command)
    assert_same_run(tmp_path / "again", two, (".", *LAST))


def test_sharded_like_zero_2_one_process_goes_on_as_two(command, one, tmp_path):
    """Weights stay whole from forward to backward; resumed once more it is the same to the bit."""
    goes_on(pretraining, one, tmp_path / "two", 2, command, LIKE_ZERO_2)
    assert_close_run(tmp_path / "two", one, (".", *LAST))
    goes_on(pretraining, tmp_path / "two", tmp_path / "again", 2, command, LIKE_ZERO_2, done=2)
    assert_same_run(tmp_path / "again", tmp_path / "two", (".", *LAST))


def test_sharded_fine_tuning_is_that_of_one_process(command, tmp_path):
    """In bf16, with an encoder that is frozen at first; one process goes on."""
    one, two, flags = tmp_path / "one", tmp_path / "two", {"mixed_precision": "bf16"}
    ended_well(finetuning, command(finetuning, one, gradient_accumulation_steps=4, **flags), 1)
    ended_well(finetuning, command(finetuning, two, gradient_accumulation_steps=2, **flags), 2)
    assert_close_run(two, one, (".", *LAST))
    assert Wav2Vec2ForCTC.from_pretrained(two, output_loading_info=True)[1]["missing_keys"] == set()
    goes_on(finetuning, two, tmp_path / "other", 1, command, **flags)
    assert_close_run(tmp_path / "other", one, (".", *LAST))


@needs_deepspeed
def test_deepspeed_pretrains_as_one_process_does(command, one, tmp_path):
    """Layerdrop, accumulation, clipping, validation; to the bit if DeepSpeed goes on; it goes on with what others began."""
    two = tmp_path / "two"
    ended_well(pretraining, command(pretraining, two, gradient_accumulation_steps=2), 2, **BY_DEEPSPEED)
    assert_close_run(two, one, (".", *LAST))
    assert {path.name for path in checkpoint(one, 3).iterdir()} - {path.name for path in checkpoint(two, 3).iterdir()} == {
        "random_states_0.pkl"}
    goes_on(pretraining, two, tmp_path / "again", 2, command, BY_DEEPSPEED)
    assert_same_run(tmp_path / "again", two, (".", *LAST))
    goes_on(pretraining, one, tmp_path / "other", 2, command, BY_DEEPSPEED)
    assert_close_run(tmp_path / "other", one, (".", *LAST))


@needs_deepspeed
def test_deepspeed_fine_tunes_as_one_process_does(command, tmp_path):
    """In bf16, with activations computed again; FSDP2 goes on."""
    one, two = tmp_path / "one", tmp_path / "two"
    flags = {"mixed_precision": "bf16", "gradient_checkpointing": True, "freeze_finetune_updates": None}
    ended_well(finetuning, command(finetuning, one, gradient_accumulation_steps=4, **flags), 1)
    ended_well(finetuning, command(finetuning, two, gradient_accumulation_steps=2, **flags), 2, **BY_DEEPSPEED)
    assert_close_run(two, one, (".", *LAST))
    goes_on(finetuning, two, tmp_path / "other", 2, command, **flags)
    assert_close_run(tmp_path / "other", one, (".", *LAST))


def in_a_process(rank, port, task, folder, variables):
    """A task of one of two processes; what it returns is written down."""
    os.environ.update({**SHARDED, **variables}, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    (folder / f"{rank}.json").write_text(json.dumps(task(rank, folder)))


def in_two_processes(task, folder, variables=()):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [SERVER.Process(target=in_a_process, args=(rank, port, task, folder, dict(variables))) for rank in range(2)]
    for process in processes:
        process.start()
    assert codes(processes) == [0, 0]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def tiny(folder, kind="wav2vec2"):
    torch.manual_seed(0)
    config = encoders.load_config(str(write_model(folder / kind, kind)), "--model_name_or_path", {})
    return encoders.build(config, ObjectiveSettings())


def updates(model, optimizer, accelerator, rank):
    """A good update, one to which one process gives NaN, a good one."""
    finite = FiniteUpdates(optimizer, 0, 9, accelerator.device)
    norms = []
    for value in (0.5, math.nan, -0.25):
        with synchronised_if(True, accelerator, model):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, value if rank == 1 or value == value else 0.125)
        norm = clipped(accelerator, model, 1.0)
        finite.step(norm, 0.01)
        norms.append(float(norm) if torch.isfinite(norm) else math.nan)
    return norms, finite.skipped()


def updates_of_shards(rank, folder):
    """Beside them the same updates of a whole model."""
    accelerator, whole = accelerator_for(None), tiny(folder / str(rank))
    model, optimizer = spread(accelerator, copy.deepcopy(whole), OPTIONS)
    norms, skipped = updates(model, optimizer, accelerator, rank)
    save_state(accelerator, model, optimizer, str(folder))
    weights = gathered(accelerator.unwrap_model(model).state_dict(), keeps=True)
    plain = accelerator.prepare_optimizer(adamw(whole, OPTIONS))
    expected = updates(whole, plain, accelerator, 1)
    torch.testing.assert_close(weights, dict(whole.state_dict()), rtol=1e-5, atol=1e-6)
    if rank == 0:
        moments = torch.load(folder / "optimizer.bin", weights_only=True)["state"]
        torch.testing.assert_close(moments, optimizer_state(plain), rtol=1e-5, atol=1e-6)
    return [norms, skipped, *expected]


def optimizer_state(optimizer):
    return optimizer.state_dict()["state"]


@pytest.mark.parametrize("variables", [{}, pytest.param(BY_DEEPSPEED, marks=needs_deepspeed)], ids=["fsdp2", "deepspeed"])
def test_an_update_that_is_not_finite_in_one_part_is_skipped_in_all(variables, tmp_path):
    for norms, skipped, norms_of_one, skipped_by_one in in_two_processes(updates_of_shards, tmp_path, variables):
        assert skipped == skipped_by_one == 1
        assert norms == pytest.approx(norms_of_one, rel=1e-5, nan_ok=True)
        assert [math.isfinite(each) for each in norms] == [True, False, True]


def kinds_between(rank, folder):
    """What the weights of a layer are between its forward and its backward pass, and after that, for each way to launch."""
    kinds = []
    for variables in ({}, LIKE_ZERO_2):
        os.environ.update(variables)
        model = spread(accelerator_for(None), Wav2Vec2Model(tiny(folder / str(rank)).config).eval(), OPTIONS)[0]
        keys = model.encoder.layers[0].attention.k_proj
        output = model(torch.ones(1, 1600)).last_hidden_state
        kinds.append(type(keys.weight).__name__)
        output.sum().backward()
        kinds.append(type(keys.weight).__name__)
    return kinds


def test_launched_like_zero_2_weights_stay_whole_from_forward_to_backward(tmp_path):
    for kinds in in_two_processes(kinds_between, tmp_path):
        assert kinds == ["DTensor", "DTensor", "Parameter", "DTensor"]


def refusals(rank, folder):
    """What the processes are told, case by case."""
    told = []
    for variables, flags in REFUSED:
        before = dict(os.environ)
        os.environ.update(variables)
        with pytest.raises(InputError) as caught:
            accelerator_for(None, **flags)
        told.append(str(caught.value))
        os.environ.clear()
        os.environ.update(before)
    with pytest.raises(InputError) as caught:
        spread(accelerator_for(None), tiny(folder / str(rank), "wav2vec2-conformer"), OPTIONS)
    return [*told, str(caught.value)]


REFUSED = [({"FSDP_VERSION": "1"}, {}), ({"FSDP_OFFLOAD_PARAMS": "true"}, {}), ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}),
           ({"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, {}), ({}, {"torch_compile": True}), ({}, {"adapter_language": "deu"})]
TOLD = ["fsdp_version: .* give 2", "fsdp_offload_params: .* give false",
        "fsdp_activation_checkpointing: .*--gradient_checkpointing", "fsdp_cpu_ram_efficient_loading: .* give false",
        "--torch_compile: .* launch with DDP",
        "--adapter_language: .* launch with DDP", "--model_name_or_path .*: has batch norms.* launch with DDP"]


def test_what_cannot_be_sharded_is_refused_at_the_start(tmp_path):
    for told in in_two_processes(refusals, tmp_path):
        for message, pattern in zip(told, TOLD, strict=True):
            assert re.fullmatch(pattern, message)


@pytest.mark.parametrize(("variables", "flags", "told"), [
    ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, {}, "zero_stage: .* give 2"),
    ({"ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"}, {}, "deepspeed_config_file: .* give zero_stage: 2 in its place"),
    ({"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, {}, "offload_optimizer_device: .* give none"),
    ({"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "nvme"}, {}, "offload_param_device: .* give none"),
    ({"ACCELERATE_GRADIENT_CLIPPING": "1.0"}, {}, "gradient_clipping: .*--max_grad_norm.*"),
    ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, {}, "gradient_accumulation_steps: leave it out.*"),
    ({}, {"freeze_finetune_updates": 9}, "--freeze_finetune_updates: .* steps .* launch with DDP"),
    ({}, {"torch_compile": True}, "--torch_compile: .* launch with DDP")])
def test_what_deepspeed_cannot_do_is_refused(variables, flags, told, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    asked = [f"{name}: {remedy}" for name, (is_asked, remedy) in refusals_of_zero("no", flags).items() if is_asked]
    assert len(asked) == 1
    assert re.fullmatch(told, asked[0])


def refused_in_a_process(rank, folder):
    """What the launched script tells."""
    with pytest.raises(InputError) as caught:
        accelerator_for("bf16", freeze_finetune_updates=9)
    return str(caught.value)


def test_deepspeed_refuses_at_the_start(tmp_path):
    told = in_two_processes(refused_in_a_process, tmp_path, BY_DEEPSPEED)
    assert told[0] == told[1]
    assert told[0].startswith("--freeze_finetune_updates: " if importlib.util.find_spec("deepspeed") else
                              "DeepSpeed: is missing: pip install -r requirements-deepspeed.txt")


def test_megatron_is_refused(command, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_MEGATRON_LM", "true")
    told = refusal(pretraining, command(pretraining, tmp_path))
    assert told.startswith("Megatron-LM is not supported")
    assert re.search(r"configs/accelerate/\S+\.yaml", told)[0] in {str(path.relative_to(ROOT)) for path in CONFIGS}


def test_one_process_has_nothing_to_shard(command, tmp_path, monkeypatch):
    for name, value in SHARDED.items():
        monkeypatch.setenv(name, value)
    assert not isinstance(spread(accelerator_for(None), tiny(tmp_path), OPTIONS)[0], FSDPModule)


def as_launched(path):
    """The configuration, and the variables that accelerate's launcher makes of the command in its first line."""
    command = re.match(r"# accelerate launch (.*)\n", path.read_text())[1]
    words = shlex.split(command.replace("$RANK_OF_THIS_NODE", "1").replace("$FIRST_NODE", "10.0.0.1"))
    assert words[:2] == ["--config_file", str(path.relative_to(ROOT))]
    given = _validate_launch_command(launch_command_parser().parse_args(words))[0]
    given.deepspeed_fields_from_accelerate_config = []
    return given, prepare_deepspeed_cmd_env(given)[1] if given.use_deepspeed else prepare_multi_gpu_env(given)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_what_their_names_say(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    given, environment = as_launched(path)
    has_many = path.stem.endswith("many_nodes")
    assert given.num_machines == (2 if has_many else 1)
    assert given.num_processes == 8 * given.num_machines
    assert (given.machine_rank, given.main_process_ip) == ((1, "10.0.0.1") if has_many else (0, None))
    assert given.multi_gpu == path.stem.startswith("ddp")
    assert (environment.items() >= SHARDED.items()) == path.stem.startswith(("fsdp2", "zero2")) == given.use_fsdp
    assert given.use_deepspeed == path.stem.startswith("deepspeed")
    if given.use_deepspeed:
        assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "2"
        assert given.deepspeed_multinode_launcher == ("standard" if has_many else "pdsh")
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
        with patch_environment(**environment):
            assert not [name for name, (is_asked, _) in refusals_of_zero("no", {}).items() if is_asked]
    if given.use_fsdp:
        assert {environment[f"FSDP_{name}"] for name in NOT_ASKED} == {"false"}
        assert environment["FSDP_RESHARD_AFTER_FORWARD"] == ("false" if path.stem.startswith("zero2") else "true")
    script, *argv = given.training_script, *given.training_script_args
    args = importlib.import_module(script.removesuffix(".py")).parse_arguments(argv)
    assert args.max_train_steps
