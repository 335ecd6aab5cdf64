"""The script itself: one exact update whatever the processes, exact resumption, the best model kept, what each flag does."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, sound, write_model
from safetensors.torch import load_file
from training_runs import (
    SMALL,
    assert_close_run,
    assert_same_run,
    changed,
    checkpoint,
    codes,
    column,
    records,
    refusal,
    start,
    steps_saved,
    steps_saved_so_far,
    wait_until,
    weights,
    words_of,
)
from transformers import AutoModelForCTC, AutoProcessor, SeamlessM4TFeatureExtractor, Wav2Vec2ForCTC, pipeline

import run_ctc_finetuning as finetuning
import run_preprocessing
import run_wav2vec2_pretraining_no_trainer as pretraining
from wavtrain.recognition import recognisers
from wavtrain.speech.prepared_directory import open_prepared

pytestmark = pytest.mark.usefixtures("quick_runs")
STEPS, NUM_TRAIN, NUM_VALIDATION = 6, 14, 5
WORDS = "ab ba cab abba bee ace dab add bad fed".split()
UNBROKEN = {"gradient_accumulation_steps": 4, "max_train_steps": STEPS, "saving_steps": 2, "eval_steps": 1, "seed": 3,
            "speed_perturbation": [0.9, 1, 1.1], "mask_time_prob": 0.3, "mask_time_length": 4, "mask_feature_prob": 0.1,
            "mask_feature_length": 3, "freeze_finetune_updates": 2}
MODELS = (".", f"checkpoints/step_{STEPS:08d}")  # the best, the last


def write_split(folder, texts, seconds=None):
    """An audiofolder. A text of None leaves its field empty."""
    folder.mkdir(parents=True)
    rows = ["file_name,text"]
    for number, text in enumerate(texts):
        samples = sound(seconds or 0.6 + 0.02 * number, len(folder.name) + number)
        soundfile.write(folder / f"{number:03d}.flac", samples, 16_000)
        rows.append(f'{number:03d}.flac,"{text}"' if text is not None else f"{number:03d}.flac,")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def prepare(folder, train, validation=(), seconds=None):
    write_split(folder / "corpus" / "train", train, seconds)
    if validation:
        write_split(folder / "corpus" / "validation", validation, seconds)
    splits = ["--validation_split_names", "validation"] if validation else ["--validation_split_percentage", "0"]
    run_preprocessing.main(["--dataset_name", str(folder / "corpus"), *splits, "--output_dir", str(folder / "prepared"),
                            "--preprocessing_num_workers", "1", "--min_duration_in_seconds", "0.03"])
    return folder / "prepared"


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """An epoch is 7 micro-batches of 2, so of two updates of 4 the second is incomplete."""
    texts = [f"{WORDS[n % 10]} {WORDS[(3 * n + 1) % 10]}" for n in range(NUM_TRAIN + NUM_VALIDATION)]
    return prepare(tmp_path_factory.mktemp("speech"), texts[:NUM_TRAIN], texts[NUM_TRAIN:])


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """Group norm, of which padding must know; dropout and layerdrop are on."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny", layerdrop=0.2, hidden_dropout=0.1, final_dropout=0.1)


@pytest.fixture(scope="module")
def encoder(speech, model_dir, tmp_path_factory):
    """The output directory of a pretraining."""
    output_dir = tmp_path_factory.mktemp("encoder") / "run"
    pretraining.main(words_of({**SMALL, "dataset_name": speech, "model_name_or_path": model_dir, "output_dir": output_dir}))
    return output_dir


@pytest.fixture(scope="module")
def command(speech, encoder):
    """(output_dir, **flags) -> the words of a command line."""
    given = {"dataset_name": speech, "model_name_or_path": encoder, **SMALL}
    return lambda output_dir, **flags: words_of({**given, "output_dir": output_dir, **flags})


@pytest.fixture
def finetune(command, tmp_path):
    """(name, **flags) -> the output directory of a run in this process."""
    def run(name="run", **flags):
        finetuning.main(command(tmp_path / name, **flags))
        return tmp_path / name

    return run


@pytest.fixture(scope="module")
def unbroken(command, tmp_path_factory):
    """One process, 4 micro-batches an update, from the beginning to the end; the encoder frozen for 2 updates."""
    output_dir = tmp_path_factory.mktemp("unbroken") / "run"
    finetuning.main(command(output_dir, **UNBROKEN))
    return output_dir


# One exact update


def test_the_unbroken_run_is_as_long_as_it_should_be(unbroken):
    assert column(unbroken, "step") == list(range(1, STEPS + 1)) == column(unbroken, "step", "validation")
    assert column(unbroken, "epoch") == [0, 0, 1, 1, 2, 2]
    assert steps_saved(unbroken) == [2, 4, 6]
    assert set(column(unbroken, "skipped_updates")) == {0}
    assert all(0 < value < 200 for value in column(unbroken, "loss") + column(unbroken, "loss", "validation"))


def test_a_run_that_diverges_before_its_first_validation_is_saved(command, tmp_path):
    """Rate times decay is so large that the weights overflow at the first update."""
    finetuning.main(command(tmp_path, learning_rate=1e9, weight_decay=1e3, saving_steps=2))
    assert column(tmp_path, "loss", "validation") == [None]
    best = json.loads((checkpoint(tmp_path, 2) / "progress.json").read_text())["best"]
    assert (best["step"], best["loss"]) == (2, sys.float_info.max)


def test_four_processes_make_the_same_run(command, unbroken, tmp_path):
    """With dropout, layerdrop, masks, speeds, a frozen encoder, and 5 validation clips in 3 batches."""
    flags = {**UNBROKEN, "gradient_accumulation_steps": 1}
    assert codes(start(finetuning, command(tmp_path / "run", **flags), 4)) == [0] * 4
    assert_close_run(tmp_path / "run", unbroken, MODELS)


@pytest.mark.parametrize("mean_over", ["utterances", "tokens"])
def test_micro_batches_add_up_to_one_mean(mean_over, finetune, speech):
    """Without chance, 7 micro-batches of 2, or of all 14 clips, are one update; the loss is that of transformers."""
    flags = {"max_train_steps": 1, "mean_over": mean_over, "mask_time_prob": 0, "hidden_dropout": 0, "layerdrop": 0,
             "attention_dropout": 0, "activation_dropout": 0, "feat_proj_dropout": 0, "final_dropout": 0}
    many = finetune("many", **flags, gradient_accumulation_steps=7)
    one = finetune("one", **flags, per_device_train_batch_size=14)
    (a,), (b,) = records(many, "train"), records(one, "train")
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-5)
    torch.testing.assert_close(weights(many), weights(one), rtol=1e-5, atol=2e-6)
    assert a["loss"] == pytest.approx(loss_of_transformers(finetune, flags, speech)[mean_over], rel=1e-4)


def loss_of_transformers(finetune, flags, speech):
    """Of the weights a run begins with, clip by clip."""
    begin = finetune("begin", **{**flags, "learning_rate": 1e-30})
    model, processor = Wav2Vec2ForCTC.from_pretrained(begin).eval(), AutoProcessor.from_pretrained(begin)
    model.config.ctc_loss_reduction = "sum"
    total, num_tokens, clips = 0.0, 0, open_prepared(str(speech)).load("train")
    for name, text in zip(clips["utterance_id"], clips["text"], strict=True):
        wave, _ = soundfile.read(speech.parent / "corpus" / "train" / name, dtype="float32")
        labels = processor.tokenizer(text, return_tensors="pt").input_ids
        inputs = processor(wave, sampling_rate=16_000, return_tensors="pt")
        total, num_tokens = total + float(model(**inputs, labels=labels).loss.detach()), num_tokens + labels.numel()
    return {"utterances": total / NUM_TRAIN, "tokens": total / num_tokens}


# Resumption and the best model


def stopped_at(step, unbroken, output_dir):
    """As the run was when it had been killed some time after the checkpoint of this step."""
    shutil.copytree(unbroken, output_dir)
    for later in steps_saved(output_dir):
        if later > step:
            shutil.rmtree(checkpoint(output_dir, later))
    return output_dir


@pytest.mark.parametrize(("step", "flags"), [(2, {"dataloader_num_workers": 1}), (4, {})], ids=str)
def test_a_resumed_run_equals_the_unbroken_one(step, flags, command, unbroken, tmp_path):
    """When the encoder is about to thaw, and later; with other loaders."""
    output_dir = stopped_at(step, unbroken, tmp_path / "run")
    finetuning.main(command(output_dir, **UNBROKEN, resume_from_checkpoint="latest", **flags))
    assert_same_run(output_dir, unbroken, MODELS)


def test_one_process_can_go_on_as_two(command, unbroken, tmp_path):
    output_dir = stopped_at(2, unbroken, tmp_path / "run")
    argv = command(output_dir, **{**UNBROKEN, "gradient_accumulation_steps": 2, "resume_from_checkpoint": "latest"})
    assert codes(start(finetuning, argv, 2, SAID=str(tmp_path / "said"))) == [0, 0]
    assert "on 2 processes" in (tmp_path / "said").read_text()
    assert_close_run(output_dir, unbroken, MODELS)


@pytest.mark.parametrize(("end", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)])
def test_a_run_that_was_ended_goes_on_exactly(end, code, command, unbroken, tmp_path):
    (process,) = start(finetuning, command(tmp_path / "run", **UNBROKEN))
    wait_until(lambda: 2 in steps_saved_so_far(tmp_path / "run") and len(records(tmp_path / "run")) >= 5, process)
    os.kill(process.pid, end)
    assert codes([process]) == [code]
    assert steps_saved_so_far(tmp_path / "run")[-1] < STEPS
    finetuning.main(command(tmp_path / "run", **UNBROKEN, resume_from_checkpoint="latest"))
    assert_same_run(tmp_path / "run", unbroken, MODELS)


@pytest.mark.parametrize(("changes", "message"), [
    ({"learning_rate": 2e-3}, "--learning_rate was 0.001 and is 0.002"), ({"seed": 4}, "--seed was 3 and is 4"),
    ({"freeze_finetune_updates": 3}, "--freeze_finetune_updates was 2 and is 3"),
    ({"mean_over": "tokens"}, '--mean_over was "utterances" and is "tokens"'),
    ({"text_case": "upper"}, '--text_case was "keep" and is "upper"'),
    ({"vocabulary": "dict.ltr.txt"}, "--vocabulary was null and is"),
    ({"gradient_accumulation_steps": 2}, "micro_batches_per_update was 4 and is 2")], ids=str)
def test_a_resumed_run_is_the_same_run(changes, message, command, unbroken, tmp_path):
    (tmp_path / "dict.ltr.txt").write_text("| 9\n" + "".join(f"{letter} 1\n" for letter in "abcdef"))
    changes = {name: tmp_path / value if name == "vocabulary" else value for name, value in changes.items()}
    argv = command(stopped_at(4, unbroken, tmp_path / "run"), **{**UNBROKEN, "resume_from_checkpoint": "latest", **changes})
    assert message in refusal(finetuning, argv)


def test_a_vocabulary_that_changed_behind_its_name_is_refused(command, tmp_path):
    """Of the same size, so the weights would load."""
    letters = tmp_path / "dict.ltr.txt"
    letters.write_text("| 9\na 1\nb 1\n")
    finetuning.main(command(tmp_path / "run", vocabulary=letters, max_train_steps=1))
    letters.write_text("| 9\nb 1\na 1\n")
    argv = command(tmp_path / "run", vocabulary=letters, resume_from_checkpoint="latest")
    assert "vocabulary was" in refusal(finetuning, argv)


@pytest.fixture(scope="module")
def up_and_down(encoder, tmp_path_factory):
    """Clips of a single frame with one of two letters, which a model that hears little guesses; every model is kept."""
    folder = tmp_path_factory.mktemp("one_frame")
    speech = prepare(folder, ["a", "b"] * 7, ["a", "b", "a", "b", "a"], seconds=0.04)
    flags = {**SMALL, "dataset_name": speech, "model_name_or_path": encoder, "output_dir": folder / "run", "saving_steps": 1,
             "save_total_limit": 99, "max_train_steps": 10, "learning_rate": 0.03, "lr_scheduler_type": "constant", "seed": 3}
    best = finetuning.main(words_of(flags))
    return folder / "run", best, flags


def test_the_best_model_is_kept_apart_from_the_last(up_and_down):
    output_dir, best, _ = up_and_down
    found = records(output_dir, "validation")
    assert len({record["wer"] for record in found}) > 1
    wanted = min(found, key=lambda record: (record["wer"], record["cer"], record["loss"]))
    assert best == {name: value for name, value in wanted.items() if name != "phase"}
    assert best["step"] < 10
    assert changed(weights(output_dir), weights(checkpoint(output_dir, best["step"]))) == set()
    assert changed(weights(output_dir), weights(checkpoint(output_dir, 10)))
    assert best["wer"] == wer_of_transformers(output_dir)


def wer_of_transformers(output_dir):
    """Share of single letters that are wrong."""
    model, processor = AutoModelForCTC.from_pretrained(output_dir).eval(), AutoProcessor.from_pretrained(output_dir)
    wrong = 0
    for path, letter in zip(sorted((output_dir.parent / "corpus" / "validation").glob("*.flac")), "ababa", strict=True):
        inputs = processor(soundfile.read(path, dtype="float32")[0], sampling_rate=16_000, return_tensors="pt")
        wrong += processor.batch_decode(model(**inputs).logits.argmax(-1)) != [letter]
    return wrong / 5


@pytest.mark.parametrize("is_link", [False, True], ids=["", "checkpoints on another disk"])
def test_a_resumed_run_remembers_its_best_model(is_link, up_and_down, tmp_path):
    output_dir, best, flags = up_and_down
    resumed = stopped_at(best["step"], output_dir, tmp_path / "run")
    if is_link:
        (tmp_path / "disk" / "of").mkdir(parents=True)
        shutil.move(resumed / "checkpoints", tmp_path / "disk" / "of" / "checkpoints")
        (resumed / "checkpoints").symlink_to(tmp_path / "disk" / "of" / "checkpoints")
    assert finetuning.main(words_of({**flags, "output_dir": resumed, "resume_from_checkpoint": "latest"})) == best
    assert records(resumed) == records(output_dir)
    assert changed(weights(resumed), weights(output_dir)) == set()


@pytest.mark.parametrize(("step", "more"), [(9, 1), (10, 0)])
def test_a_run_that_goes_on_elsewhere_has_a_model_there(step, more, up_and_down, tmp_path):
    """Even where none is better than the best of the old directory, or nothing is left to do; what lay there is replaced."""
    output_dir, _, flags = up_and_down
    shutil.copytree(output_dir, tmp_path / "run")
    flags = {**flags, "output_dir": tmp_path / "run", "resume_from_checkpoint": checkpoint(output_dir, step)}
    flags["overwrite_output_dir"] = True
    best = finetuning.main(words_of(flags))
    assert best["step"] == 10 * more
    assert changed(weights(tmp_path / "run"), weights(checkpoint(output_dir, 10))) == set()


def test_gradient_checkpointing_changes_no_number(finetune, unbroken):
    assert_close_run(finetune(**UNBROKEN, gradient_checkpointing=True), unbroken, MODELS)


# Where a run begins, and what learns


def test_the_encoder_is_frozen_for_so_many_updates(finetune, encoder):
    """Weight decay leaves it alone too. The feature encoder stays frozen, as it came with weights."""
    output_dir = finetune(saving_steps=1, max_train_steps=3, freeze_finetune_updates=2, weight_decay=0.5, eval_steps=3)
    begin, now = weights(encoder), [weights(checkpoint(output_dir, step)) for step in (1, 2, 3)]
    for frozen in now[:2]:
        assert [name for name in frozen if name in begin and not torch.equal(frozen[name], begin[name])] == []
    assert changed(now[0], now[1]) == {"lm_head.weight", "lm_head.bias"}
    thawed = changed(now[1], now[2])
    assert not any("feature_extractor" in name for name in thawed)
    assert {name for name in now[0] if "encoder.layers" in name} | {"wav2vec2.feature_projection.projection.weight"} <= thawed


@pytest.mark.parametrize(("flags", "learns"), [({}, False), ({"feature_encoder": "trained"}, True),
                                               ({"model_name_or_path": None, "config_name": "config"}, True),
                                               ({"model_name_or_path": None, "config_name": "config",
                                                 "feature_encoder": "frozen"}, False)], ids=str)
def test_the_feature_encoder_is_frozen_if_it_came_with_weights(flags, learns, command, model_dir):
    flags = {name: model_dir if value == "config" else value for name, value in flags.items()}
    args = finetuning.parse_arguments(command("out", **flags))
    model, _ = finetuning.load_model(args, finetuning.build_vocabulary(["ab"], "letters"))
    assert {parameter.requires_grad for parameter in model.base_model.feature_extractor.parameters()} == {learns}


@pytest.fixture
def bert_dir(tmp_path):
    """Filter banks in place of the waveform."""
    folder = write_model(tmp_path / "bert", "wav2vec2-bert", feature_projection_input_dim=20, conv_depthwise_kernel_size=5,
                         layerdrop=0.2, hidden_dropout=0.1)
    SeamlessM4TFeatureExtractor(feature_size=10, num_mel_bins=10).save_pretrained(folder)
    return folder


def test_filter_banks_run_and_resume(finetune, command, bert_dir, tmp_path):
    flags = {**UNBROKEN, "model_name_or_path": None, "config_name": bert_dir}
    output_dir, one = finetune("whole", **flags), finetune(
        "one", **{**flags, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 14, "max_train_steps": 1})
    broken = stopped_at(2, output_dir, tmp_path / "broken")
    finetuning.main(command(broken, **flags, resume_from_checkpoint="latest"))
    assert_same_run(broken, output_dir, MODELS)
    assert column(one, "audio_hours")[0] * 3600 == pytest.approx(sum(0.6 + 0.02 * n for n in range(NUM_TRAIN)), rel=0.1)
    said = pipeline("automatic-speech-recognition", str(output_dir))(sound(0.7).astype(np.float32) / 32768)
    assert said.keys() == {"text"}


def test_the_recogniser_is_one_of_transformers(unbroken):
    for folder in (unbroken, checkpoint(unbroken, 4)):
        model, processor = AutoModelForCTC.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
        assert type(model) is Wav2Vec2ForCTC
        assert changed(dict(model.state_dict()), weights(folder)) == set()
    wave = sound(0.7).astype(np.float32) / 32768
    with torch.no_grad():
        logits = model(**processor(wave, sampling_rate=16_000, return_tensors="pt")).logits
    (text,) = processor.batch_decode(logits.argmax(-1))
    assert pipeline("automatic-speech-recognition", str(checkpoint(unbroken, 4)))(wave)["text"] == text
    ours, extractor, vocabulary = recognisers.load_recogniser(str(checkpoint(unbroken, 4)))
    with torch.no_grad():
        log_probs = ours(torch.from_numpy(recognisers.features_of(wave, extractor))[None])["log_probs"]
    torch.testing.assert_close(log_probs, logits.log_softmax(-1), rtol=1e-5, atol=1e-5)
    assert list(vocabulary.tokens) == list(vocabulary_of(unbroken))


def test_languages_one_after_the_other(finetune, tmp_path, model_dir):
    """Adapters and heads of both are in the second directory, where what they share is what it was."""
    german = prepare(tmp_path / "german", ["gro\u00df", "\u00fcber"] * 2, ["\u00fcber"])
    english = prepare(tmp_path / "english", ["ab", "ba"] * 2, ["ab"])
    base = finetune("base", adapter_language="und")
    one = finetune("one", dataset_name=german, model_name_or_path=base, adapter_language="deu")
    two = finetune("two", dataset_name=english, model_name_or_path=one, adapter_language="eng")
    assert vocabulary_of(two).keys() == {"und", "deu", "eng"}
    shared = {name: value for name, value in weights(two).items() if "adapter_layer" not in name and "lm_head" not in name}
    assert [name for name, value in shared.items() if not torch.equal(value, weights(base)[name])] == []
    for language, source, letters in (("deu", one, "begor\u00df\u00fc"), ("eng", two, "ab")):
        name = f"adapter.{language}.safetensors"
        assert (two / name).read_bytes() == (source / name).read_bytes()
        model = AutoModelForCTC.from_pretrained(two, target_lang=language, ignore_mismatched_sizes=True).eval()
        tokenizer = AutoProcessor.from_pretrained(two, target_lang=language).tokenizer
        assert sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)[5:] == list(letters)
        saved = load_file(two / name)
        assert torch.equal(model.lm_head.weight, saved["lm_head.weight"])
        assert {name for name, value in saved.items() if not torch.equal(value, model.state_dict()[name])} == set()
    again = finetune("again", dataset_name=german, model_name_or_path=two, adapter_language="deu", learning_rate=1e-30)
    expected = records(one, "validation")[-1]
    assert {**records(again, "validation")[0], "step": expected["step"]} == expected


def test_from_random_weights(finetune, model_dir):
    output_dir = finetune(model_name_or_path=None, config_name=model_dir, saving_steps=1)
    one, two = weights(checkpoint(output_dir, 1)), weights(checkpoint(output_dir, 2))
    assert {name for name in one if "feature_extractor" in name} <= changed(one, two)


@pytest.mark.parametrize("is_same", [True, False])
def test_a_head_is_kept_for_its_own_vocabulary(is_same, finetune, unbroken, encoder):
    output_dir = finetune(model_name_or_path=unbroken, learning_rate=1e-30, text_case="keep" if is_same else "upper")
    moved = changed(weights(output_dir), weights(unbroken)) if is_same else {
        name for name, value in weights(output_dir).items() if not torch.equal(value, weights(unbroken)[name])}
    assert moved == (set() if is_same else {"lm_head.weight", "lm_head.bias"})
    if is_same:  # so the same texts are read off
        best = min(records(unbroken, "validation"), key=lambda record: (record["wer"], record["cer"], record["loss"]))
        for record in records(output_dir, "validation"):
            assert {**record, "step": best["step"]} == best


@pytest.mark.parametrize(("flags", "message"), [
    ({"model_name_or_path": None}, "give --model_name_or_path to start from weights, or --config_name"),
    ({"config_name": "configs/models/wav2vec2-tiny"}, "give --model_name_or_path to start from weights, or --config_name"),
    ({"model_name_or_path": "configs/models/wav2vec2-tiny"}, "has no weights: --config_name configs/models/wav2vec2-tiny"),
    ({"model_name_or_path": "/nowhere/model"}, "--model_name_or_path /nowhere/model: is no folder"),
    ({"vocabulary": "/nowhere/vocab.json"}, "--vocabulary /nowhere/vocab.json: "),
    ({"output_dir": None}, "--output_dir is needed to train"), ({"speed_perturbation": [1, 1e-9]}, "--speed_perturbation"),
    ({"hidden_dropout": 2}, "--hidden_dropout"), ({"mask_time_length": 0}, "--mask_time_length"),
    ({"num_warmup_steps": 3, "lr_scheduler_type": "constant"}, "constant has no warm-up"),
    ({"dataset_name": "/nowhere/corpus"}, "--dataset_name /nowhere/corpus"),
    ({"freeze": 1}, "unrecognized arguments: --freeze"), ({"report_to": "nonsense"}, "--report_to nonsense"),
    ({"report_to": "nonsense", "dataset_name": "/nowhere/corpus"}, "--report_to nonsense")], ids=str)
def test_flags_that_cannot_be_are_named(flags, message, command, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert message in refusal(finetuning, command(**{"output_dir": tmp_path / "run", **flags}))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_run_that_is_there_is_not_written_over(command, unbroken, tmp_path):
    output_dir = stopped_at(4, unbroken, tmp_path / "run")
    assert refusal(finetuning, command(output_dir, **UNBROKEN)).startswith(f"--output_dir {output_dir} holds a run already")
    assert records(output_dir) == records(unbroken)
    assert changed(weights(output_dir), weights(unbroken)) == set()


def test_validation_begins_after_so_many_updates(finetune):
    output_dir = finetune(max_train_steps=5, eval_steps=1, validate_after_updates=3, freeze_finetune_updates=5)
    assert column(output_dir, "step", "validation") == [3, 4, 5]
    assert column(finetune("never", eval_steps=1, validate_after_updates=9), "step", "validation") == [2]  # but for the last


# As a user


def test_rubbish_ends_with_code_2(command, tmp_path):
    assert codes(start(finetuning, command(tmp_path / "run", unit="syllables"))) == [2]


def test_a_pushed_run_lies_in_the_repository(command, tmp_path):
    (tmp_path / "hub").mkdir()
    server = subprocess.Popen([sys.executable, ROOT / "tests" / "stand_in_hub.py", tmp_path / "hub"], stdout=subprocess.PIPE,
                              text=True)
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.stdout.readline().strip()}", "HF_HUB_OFFLINE": "0",
                   "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    argv = command(tmp_path / "run", saving_steps=1, push_to_hub=True, hub_model_id="someone/model", hub_token="hf_good")
    result = subprocess.run([sys.executable, "run_ctc_finetuning.py", *argv], cwd=ROOT, env=environment, capture_output=True,
                            text=True, timeout=120)
    server.terminate()
    server.wait()
    assert result.returncode == 0, result.stderr
    repository = tmp_path / "hub" / "models" / "someone" / "model"
    assert changed(weights(repository), weights(tmp_path / "run")) == set()
    AutoModelForCTC.from_pretrained(repository)
    assert AutoProcessor.from_pretrained(repository).tokenizer.get_vocab() == vocabulary_of(tmp_path / "run")
    assert not (repository / "checkpoints").exists()
    assert "hf_good" not in (repository / "arguments.yaml").read_text()


def test_validation_does_not_depend_on_its_batches(finetune):
    """Clips of other lengths beside it change nothing of a clip, though the norm of this model's first layer is over time."""
    alone, together = (finetune(f"by{size}", per_device_eval_batch_size=size, max_train_steps=1) for size in (1, 5))
    for one, other in zip(records(alone, "validation"), records(together, "validation"), strict=True):
        assert one.pop("padding_fraction") == 0 < other.pop("padding_fraction")
        assert one.pop("phase") == other.pop("phase")
        assert one == pytest.approx(other, rel=1e-5)


# Transcripts


def test_letters_are_those_of_the_training_split_only(finetune, tmp_path, capsys):
    speech = prepare(tmp_path, ["ab", "ba", "b a", "a"], ["ac", "c\u0639", "b"])
    output_dir = finetune(dataset_name=speech)
    assert list(vocabulary_of(output_dir)) == ["<pad>", "<s>", "</s>", "<unk>", "|", "a", "b"]
    said = capsys.readouterr().out
    assert "note: 3 letters of validation are not in the vocabulary and cannot be recognised: 'c' 2, '\u0639' 1" in said
    assert (output_dir / "rejected.jsonl").read_text() == ""


def vocabulary_of(output_dir):
    return json.loads((output_dir / "vocab.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("texts", "flags", "tokens"), [
    (["\u0635\u0641\u0631", "\u0628\u064e"], {}, "| \u0628 \u0631 \u0635 \u0641 \u064e"),
    (["\u0915\u093f", "\u0928\u094d"], {}, "| \u0915 \u0928 \u093f \u094d"),
    (["\u00dcber", "gro\u00df"], {}, "| b e g o r \u00dc \u00df"),
    (["U\u0308ber", "gro\u00df"], {"text_case": "lower"}, "| b e g o r \u00df \u00fc"),
    (["ah b", "ts b"], {"unit": "phones"}, "ah b ts")], ids=["Arabic", "Devanagari", "German", "NFD", "phones"])
def test_scripts_survive_the_whole_way(texts, flags, tokens, finetune, tmp_path):
    speech = prepare(tmp_path, texts * 2, texts)
    output_dir = finetune(dataset_name=speech, max_train_steps=1, **flags)
    assert list(vocabulary_of(output_dir))[4:] == tokens.split()
    rules = finetuning.TextRules(**flags)
    tokenizer = AutoProcessor.from_pretrained(output_dir).tokenizer
    for text in texts:
        ids = tokenizer(finetuning.normalised(text, rules)).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, group_tokens=False) == finetuning.normalised(text, rules)


def test_what_cannot_be_used_has_a_line_each_and_nothing_else_is_lost(finetune, tmp_path, capsys):
    write_split(tmp_path / "corpus" / "train", ["ab", None, "!!", "a 1", "abba", "aabb", "abab", "ba"])
    for number in (4, 5, 6):  # of 5 frames: for one that needs 5, one that needs 6, one that needs 4
        soundfile.write(tmp_path / "corpus" / "train" / f"{number:03d}.flac", sound(0.105, number), 16_000)
    write_split(tmp_path / "corpus" / "validation", ["a 1", "?", "b"])
    output_dir = finetune(dataset_name=tmp_path / "corpus", validation_split_names="validation", cache_dir=tmp_path / "own",
                          digits="reject", remove_punctuation=True, max_train_steps=None, num_train_epochs=1)
    lines = [json.loads(line) for line in (output_dir / "rejected.jsonl").read_text().splitlines()]
    assert [(line["source"], line["reason"], line["detail"]) for line in lines] == [
        ("001.flac", "no_text", "None"), ("002.flac", "empty_transcript", "'!!'"), ("003.flac", "digits", "'a 1'"),
        ("005.flac", "more_labels_than_frames", "6 > 5"), ("001.flac", "empty_transcript", "'?'")]
    said = capsys.readouterr().out
    assert all(f"note: 1 clips of train are left out: {reason}" in said for reason in (
        "no_text", "empty_transcript", "digits", "more_labels_than_frames"))
    seconds = 0.6 + 0.105 + 0.105 + 0.74
    assert column(output_dir, "audio_hours")[-1] * 3600 == pytest.approx(seconds, abs=1e-3)
    assert all(math.isfinite(loss) for loss in column(output_dir, "loss") + column(output_dir, "loss", "validation"))


@pytest.mark.parametrize(("train", "validation", "message"), [
    ([None, None], (), "has no text to build a vocabulary from"), (["a"] * 2, [None], "none of the 1 validation clips"),
    (["abcabc"] * 2, (), "none of the 2 training clips can be used: 000.flac is the first: more_labels_than_frames 6 > 1")])
def test_nothing_usable_is_one_line(train, validation, message, command, tmp_path):
    speech = prepare(tmp_path, train, validation, seconds=0.04)
    assert message in refusal(finetuning, command(tmp_path / "run", dataset_name=speech))


@pytest.mark.parametrize(("vocabulary", "tokens"), [
    ("vocab.json", ["<pad>", "<unk>", "|", "b", "a"]), ("dict.ltr.txt", ["<pad>", "<s>", "</s>", "<unk>", "|", "b", "a"])])
def test_a_vocabulary_can_be_given(vocabulary, tokens, finetune, tmp_path, capsys):
    path = tmp_path / vocabulary
    as_json = json.dumps({token: i for i, token in enumerate(tokens)})
    path.write_text(as_json if vocabulary == "vocab.json" else "| 9\nb 1\na 1\n")
    output_dir = finetune(vocabulary=path, max_train_steps=1)
    assert list(vocabulary_of(output_dir)) == tokens
    assert "letters of train are not in the vocabulary" in capsys.readouterr().out
    again = finetune("again", vocabulary=output_dir, max_train_steps=1)
    assert records(again) == records(output_dir)


TABLES = {  # of ../shared/data/broken: the letters of their vocabulary
    "empty_transcript": "eorz", "null_words": "07ANaelnortu", "odd_characters": "eorvz\u0631\u0635\u0641\ufb01\U0001f600",
    "nfc_nfd": "egorz\u00df\u00f6", "mixed_case": "EORZeorz", "quotes_and_newlines": '",adehiorsz', "duplicate_rows": "enorz",
    "crlf": "eorz", "utf8_bom": "eorz", "good_and_bad_mixed": "eorz", "ragged_rows": "eorz", "missing_files": "eorz",
    "path_traversal": "eorz", "absolute_path": "eorz", "ok_reference": "eorz"}
REFUSED = {  # and what is said
    "all_files_missing": "no such file", "empty_file": "is empty", "header_only": "no rows", "latin1": "is not UTF-8",
    "invalid_utf8": "line 3: is not UTF-8", "semicolons": "separated by ';'", "truncated_jsonl": "line 3"}


def test_every_faulty_table_has_an_outcome(shared_data):
    assert {path.name for path in (shared_data / "broken" / "tables").iterdir()} == {*TABLES, *REFUSED}


@pytest.mark.parametrize("table", TABLES)
def test_what_is_good_of_a_faulty_table_is_learned(table, finetune, shared_data, tmp_path):
    flags = {"dataset_name": shared_data / "broken" / "tables" / table, "validation_split_percentage": 0,
             "cache_dir": tmp_path / "own", "preprocessing_num_workers": 1, "per_device_train_batch_size": 16}
    output_dir = finetune(**flags, max_train_steps=1)
    assert "".join(vocabulary_of(output_dir))[len("<pad><s></s><unk>|") :] == TABLES[table]
    assert 0 < column(output_dir, "loss")[0] < 1e3
    assert len((output_dir / "rejected.jsonl").read_text().splitlines()) == 2 * (table == "empty_transcript")


@pytest.mark.parametrize("only", [True, False])
@pytest.mark.parametrize("table", REFUSED)
def test_a_table_that_is_refused_is_named(table, only, command, shared_data, tmp_path):
    argv = command(tmp_path / "run", dataset_name=shared_data / "broken" / "tables" / table, cache_dir=tmp_path / "own",
                   preprocessing_num_workers=1, preprocessing_only=only)
    message = refusal(finetuning, argv)
    assert REFUSED[table] in message
    assert table in message
