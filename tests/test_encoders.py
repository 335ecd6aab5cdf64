"""Configs with what flags override, weights from wherever they are, and one line that names the flag for what is no use."""

import json
import logging

import pytest
import torch
from conftest import ROOT, TINY_MODEL, write_model
from transformers import (
    AutoFeatureExtractor,
    AutoModelForPreTraining,
    BertConfig,
    Wav2Vec2Config,
    Wav2Vec2ConformerForPreTraining,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
)

import run_wav2vec2_pretraining_no_trainer as pretraining
from wavtrain import InputError
from wavtrain.models import encoders
from wavtrain.models.contrastive import ObjectiveSettings, Wav2Vec2ConformerPretraining, Wav2Vec2Pretraining

OVERRIDES = {"mask_time_prob": 0.31, "mask_time_length": 7, "diversity_loss_weight": 0.25, "hidden_dropout": 0.11,
             "attention_dropout": 0.12, "activation_dropout": 0.13, "feat_proj_dropout": 0.14, "feat_quantizer_dropout": 0.15,
             "layerdrop": 0.16}
FLAG, TINY = "--model_name_or_path", ROOT / "configs" / "models" / "wav2vec2-tiny"


@pytest.fixture
def model_dir(tmp_path):
    return write_model(tmp_path / "model")


def load(*argv):
    """The script's model and extractor."""
    args = pretraining.parse_arguments(["--dataset_name", "corpus", "--output_dir", "out", *map(str, argv)])
    return pretraining.load_model(args)


def assert_same_weights(one, other, but=()):
    names = [name for name in other if not name.startswith(but)] if but else list(other)
    assert set(names) <= set(one)
    assert all(torch.equal(one[name], other[name]) for name in names)


def test_every_override_is_in_the_test():
    assert set(OVERRIDES) == set(pretraining.CONFIG_FLAGS)


@pytest.mark.parametrize("kind", ["wav2vec2", "wav2vec2-conformer"])
def test_every_override_reaches_the_model(kind, tmp_path):
    write_model(tmp_path, kind)
    plain, _ = load(FLAG, tmp_path)
    model, _ = load(FLAG, tmp_path, *(word for name, value in OVERRIDES.items() for word in (f"--{name}", value)))
    for name, value in OVERRIDES.items():
        assert getattr(plain.config, name) != value == getattr(model.config, name)
    encoder, layer = model.base_model.encoder, model.base_model.encoder.layers[0]
    assert encoder.dropout.p == 0.11
    attention = layer.attention.dropout if kind == "wav2vec2" else layer.self_attn.dropout.p
    assert attention == 0.12
    feed_forward = layer.feed_forward if kind == "wav2vec2" else layer.ffn1
    assert (feed_forward.output_dropout.p, feed_forward.intermediate_dropout.p) == (0.11, 0.13)
    assert model.base_model.feature_projection.dropout.p == 0.14
    assert model.dropout_features.p == 0.15


def test_layerdrop_of_one_leaves_no_layer(model_dir):
    model, _ = load(FLAG, model_dir, "--layerdrop", 1, "--hidden_dropout", 0)
    kept, _ = load(FLAG, model_dir, "--layerdrop", 0, "--hidden_dropout", 0)
    hidden = torch.randn(1, 20, 32)
    encoder = model.base_model.encoder
    bare = encoder.layer_norm(hidden + encoder.pos_conv_embed(hidden))
    assert torch.equal(encoder(hidden).last_hidden_state, bare)
    assert not torch.allclose(kept.base_model.encoder(hidden).last_hidden_state, bare, atol=1e-2)


def test_without_overrides_the_config_is_as_it_is_written(model_dir):
    config = encoders.load_config(str(model_dir), FLAG, dict.fromkeys(OVERRIDES))
    written = json.loads((model_dir / "config.json").read_text())
    assert all(getattr(config, name) == written[name] for name in {*OVERRIDES, "hidden_size", "num_negatives"})


def test_the_objective_is_the_flags(model_dir):
    model, _ = load(FLAG, model_dir, "--feature_penalty_weight", 3, "--feature_grad_mult", 0.7, "--cross_sample_negatives", 5,
                    "--codebook_negatives", 6)
    assert model.objective == ObjectiveSettings(3, 0.7, 5, 6)


def test_random_weights_follow_from_the_seed(model_dir):
    one, same, other = (load(FLAG, model_dir, "--seed", seed)[0].state_dict() for seed in (1, 1, 2))
    assert_same_weights(one, same)
    assert not torch.equal(one["project_hid.weight"], other["project_hid.weight"])


def test_config_name_is_another_config_than_the_extractors(model_dir, tmp_path):
    write_model(tmp_path / "other", hidden_size=16)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(model_dir)
    model, extractor = load(FLAG, model_dir, "--config_name", tmp_path / "other")
    assert model.config.hidden_size == 16
    assert extractor.do_normalize is False


def refusal(call, *argv):
    with pytest.raises(InputError) as caught:
        call(*argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("settings", "message"), [
    ({"mask_time_prob": 0.0}, "mask_time_prob is 0.0, so nothing would be learned: give --mask_time_prob 0.65"),
    ({"mask_feature_prob": 0.1}, "mask_feature_prob and add_adapter belong to fine-tuning"),
    ({"add_adapter": True}, "mask_feature_prob and add_adapter belong to fine-tuning")], ids=str)
def test_configs_that_nothing_would_be_learned_with(settings, message, tmp_path):
    write_model(tmp_path, **settings)
    assert refusal(load, FLAG, tmp_path).startswith(f"{FLAG} {tmp_path}: {message}")
    assert refusal(load, FLAG, TINY, "--config_name", tmp_path).startswith(f"--config_name {tmp_path}: {message}")


def test_mask_time_prob_0_can_be_put_right_by_its_flag(tmp_path):
    write_model(tmp_path, mask_time_prob=0.0)
    assert load(FLAG, tmp_path, "--mask_time_prob", 0.65)[0].config.mask_time_prob == 0.65


def test_a_model_of_another_type(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    assert refusal(load, FLAG, tmp_path) == (
        f"{FLAG} {tmp_path}: its model_type is bert; pretrained here are wav2vec2 and wav2vec2-conformer")


def test_no_such_folder_and_a_folder_without_a_model(tmp_path):
    message = refusal(load, FLAG, tmp_path / "missing")
    assert message.startswith(f"{FLAG} {tmp_path}/missing: is no folder and not to be had from the Hub")
    assert "wav2vec2-tiny" in message  # what there is
    assert refusal(load, FLAG, tmp_path).startswith(f"{FLAG} {tmp_path}: cannot be used")
    assert refusal(load, FLAG, TINY, "--config_name", tmp_path / "x").startswith(f"--config_name {tmp_path}/x: is no folder")


def test_a_config_that_is_no_json(model_dir):
    (model_dir / "config.json").write_text('{"model_type": "wav2ve')
    assert refusal(load, FLAG, model_dir).startswith(f"{FLAG} {model_dir}: cannot be used")


def test_an_extractor_for_another_rate(model_dir):
    Wav2Vec2FeatureExtractor(sampling_rate=8_000).save_pretrained(model_dir)
    assert refusal(load, FLAG, model_dir) == f"{FLAG} {model_dir}: wants 8000 Hz; prepared speech has 16000"


def test_a_hub_id_that_cannot_be_had_is_the_shipped_one_of_its_name(caplog):
    with caplog.at_level(logging.WARNING):
        config = encoders.load_config("facebook/wav2vec2-base", FLAG, {})
        extractor = encoders.load_feature_extractor("facebook/wav2vec2-base", FLAG)
    assert (config.hidden_size, config.num_hidden_layers, config.mask_time_prob) == (768, 12, 0.65)
    assert extractor.sampling_rate == 16_000
    assert f"{FLAG} facebook/wav2vec2-base: not to be had from the Hub; taking configs/models/wav2vec2-base" in caplog.text
    assert refusal(encoders.load_config, "facebook/nothing", FLAG, {}).startswith(f"{FLAG} facebook/nothing: is no folder and")


def save_stock(kind, folder, **settings):
    torch.manual_seed(5)
    model = kind(kind.config_class(**{**TINY_MODEL, **settings}))
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return model.state_dict()


@pytest.mark.parametrize("kind", [Wav2Vec2ForPreTraining, Wav2Vec2ConformerForPreTraining])
def test_weights_of_a_stock_model(kind, tmp_path, caplog):
    weights = save_stock(kind, tmp_path)
    model, _ = load("--init_from", tmp_path)  # is the model as well, if no other is given
    assert_same_weights(model.state_dict(), weights)
    assert set(model.state_dict()) == set(weights)
    assert all(module.training for module in model.modules())  # as a new model: from_pretrained turns dropout off
    assert load(FLAG, tmp_path)[0].training
    assert "begin at random" not in caplog.text


def test_weights_of_a_recogniser(tmp_path, caplog):
    weights = save_stock(Wav2Vec2ForCTC, tmp_path, vocab_size=9)
    with caplog.at_level(logging.WARNING):
        model, _ = load("--init_from", tmp_path)
    assert_same_weights(model.state_dict(), weights, but=("lm_head",))
    new = {name for name in model.state_dict() if name not in weights}
    assert {name.split(".")[0] for name in new} == {"quantizer", "project_hid", "project_q"}
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "wavtrain.models.encoders"]
    assert all(name in warning for name in new)
    assert all(torch.isfinite(model.state_dict()[name]).all() for name in new)
    assert float(model.quantizer.weight_proj.weight.detach().std()) == pytest.approx(1, abs=0.2)  # drawn as in a new model


def test_weights_go_into_a_model_with_other_dropout(tmp_path, model_dir):
    weights = save_stock(Wav2Vec2ForPreTraining, tmp_path / "stock", hidden_dropout=0.5)
    model, _ = load("--init_from", tmp_path / "stock", FLAG, model_dir, "--layerdrop", 0.3)
    assert_same_weights(model.state_dict(), weights)
    assert model.config.hidden_dropout == Wav2Vec2Config().hidden_dropout
    assert model.config.layerdrop == 0.3


@pytest.mark.parametrize("settings", [{"hidden_size": 48}, {"num_hidden_layers": 3}, {"conv_dim": (8,) * 7}], ids=str)
def test_weights_of_another_size_are_refused(settings, tmp_path, model_dir):
    save_stock(Wav2Vec2ForPreTraining, tmp_path / "stock")
    write_model(model_dir, **settings)
    message = refusal(load, "--init_from", tmp_path / "stock", FLAG, model_dir)
    assert message.startswith(f"--init_from {tmp_path}/stock: ")


def test_weights_that_are_not_there(tmp_path, model_dir):
    assert refusal(load, "--init_from", tmp_path / "none", FLAG, model_dir).startswith(f"--init_from {tmp_path}/none: ")
    assert refusal(load, "--init_from", model_dir).startswith(f"--init_from {model_dir}: ")  # a config alone


def test_damaged_weights_are_refused(tmp_path):
    save_stock(Wav2Vec2ForPreTraining, tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert refusal(load, "--init_from", tmp_path).startswith(f"--init_from {tmp_path}: ")


@pytest.mark.parametrize(("kind", "ours", "stock"), [
    ("wav2vec2", Wav2Vec2Pretraining, Wav2Vec2ForPreTraining),
    ("wav2vec2-conformer", Wav2Vec2ConformerPretraining, Wav2Vec2ConformerForPreTraining)])
def test_what_is_saved_names_the_stock_class(kind, ours, stock, tmp_path):
    model, extractor = load(FLAG, write_model(tmp_path / "model", kind, layerdrop=0.2))
    assert type(model) is ours
    model.save_pretrained(tmp_path / "saved")
    encoders.describe(extractor, model, str(tmp_path / "saved"))
    saved = AutoModelForPreTraining.from_pretrained(tmp_path / "saved")
    assert type(saved) is stock
    assert saved.config.layerdrop == 0.2
    assert_same_weights(saved.state_dict(), model.state_dict())
    assert AutoFeatureExtractor.from_pretrained(tmp_path / "saved").to_dict() == extractor.to_dict()


def test_what_batches_need_to_know_of_a_model():
    assert encoders.takes_uneven_clips(Wav2Vec2Config(feat_extract_norm="group")) == "crop"
    assert encoders.takes_uneven_clips(Wav2Vec2Config(feat_extract_norm="layer")) == "pad"
