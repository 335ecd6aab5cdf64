"""Recognisers are built, saved and read again as transformers does; what goes into them, and how many frames come out."""

import os

import numpy as np
import pytest
import torch
from conftest import sound
from test_ctc import KINDS, SIZES
from transformers import (
    AutoConfig,
    AutoModelForCTC,
    AutoTokenizer,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
)

from wavtrain import InputError
from wavtrain.recognition import recognisers
from wavtrain.recognition.transcripts import TextRules
from wavtrain.recognition.vocabularies import build_vocabulary

VOCABULARY = build_vocabulary(["ab cd"], "letters")  # 9 tokens
OTHER = build_vocabulary(["ef gh"], "letters")  # as many
LARGER = build_vocabulary(["abcdefg hij"], "letters")


def extractor_of(kind: str) -> Wav2Vec2FeatureExtractor | SeamlessM4TFeatureExtractor:
    if kind.startswith("bert"):
        return SeamlessM4TFeatureExtractor(feature_size=10, num_mel_bins=10)
    return Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)


def config_folder(folder, kind: str = "wav2vec2", **settings) -> str:
    family, own = KINDS[kind]
    AutoConfig.for_model(family, **{**SIZES, **own, **settings}).save_pretrained(folder)
    extractor_of(kind).save_pretrained(folder)
    return str(folder)


def load(name: str, vocabulary=VOCABULARY, **overrides):
    return recognisers.load_config(name, "--config_name", vocabulary, overrides)


def write(model, folder, kind: str = "wav2vec2", vocabulary=VOCABULARY, language: str | None = None) -> str:
    """As a training writes its output directory."""
    model.save_pretrained(folder)
    recognisers.describe(extractor_of(kind), vocabulary, TextRules(), language, model, str(folder))
    return str(folder)


@pytest.fixture
def recogniser(tmp_path):
    """A directory of a trained one, and its model."""
    torch.manual_seed(0)
    model = recognisers.build(load(config_folder(tmp_path / "config")), VOCABULARY)
    return write(model, tmp_path / "recogniser"), model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_read_by_transformers_and_by_us(kind, tmp_path):
    model = recognisers.build(load(config_folder(tmp_path / "config", kind)), VOCABULARY)
    assert model.head_is_new
    assert model.training
    folder = write(model, tmp_path / "out", kind)
    wave = sound(0.4).astype(np.float32) / 32768
    stock = AutoModelForCTC.from_pretrained(folder).eval()
    assert stock.config.architectures == [type(stock).__name__]
    ours, extractor, vocabulary = recognisers.load_recogniser(folder)
    given = torch.from_numpy(recognisers.features_of(wave, extractor))[None]
    with torch.no_grad():
        wanted = stock(given).logits.log_softmax(-1)
        torch.testing.assert_close(ours(given)["log_probs"], wanted, rtol=0, atol=1e-6)
        torch.testing.assert_close(model.eval()(given)["log_probs"], wanted, rtol=0, atol=1e-6)
    assert vocabulary == VOCABULARY
    assert AutoTokenizer.from_pretrained(folder)("ab cd").input_ids == VOCABULARY.encode("ab cd").tolist()


@pytest.mark.parametrize("kind", ["wav2vec2", "wav2vec2-adapter", "sew", "bert", "bert-adapter"])
def test_frames_are_those_of_the_model(kind, tmp_path):
    config = load(config_folder(tmp_path, kind))
    model = recognisers.build(config, VOCABULARY).eval()
    extractor, frames_of = extractor_of(kind), recognisers.frames_of(config)
    wave = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    lengths = [720, 879, 880, 1039, 1040, 1199, 1200, 1500, 4000, 4321, 16_000, 49_999, 50_000]
    for length in lengths:
        given = torch.from_numpy(recognisers.features_of(wave[:length], extractor))[None]
        with torch.no_grad():
            assert model(given)["log_probs"].shape[1] == frames_of(np.array([length]))[0], length
    total = 320 * (2 if kind == "bert-adapter" else 4 if kind == "wav2vec2-adapter" else 1)
    assert recognisers.samples_per_frame(config) == total
    assert frames_of(np.array(800_000 + total)) - frames_of(np.array(800_000)) == 1
    assert frames_of(np.array([0, 100, 399])).tolist() == [0, 0, 0]


@pytest.mark.parametrize("length", [16_000, 16_160, 7_777])
def test_features_are_those_of_the_extractor(length):
    wave = (sound(2)[:length] / 32768).astype(np.float32)
    found = recognisers.features_of(wave, extractor_of("wav2vec2"))
    np.testing.assert_allclose(found, (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7), rtol=1e-5, atol=1e-6)
    assert found.dtype == np.float32
    banks = SeamlessM4TFeatureExtractor()
    whole = banks(wave, sampling_rate=16_000, return_tensors="np")
    found = recognisers.features_of(wave, banks)
    assert found.dtype == np.float32
    assert found.shape == (((length - 400) // 160 + 1) // 2, 160)
    assert whole["attention_mask"].sum() == len(found)
    np.testing.assert_allclose(found, whole["input_features"][0, : len(found)], rtol=0, atol=1e-4)


def test_an_encoder_of_pretraining_gets_a_new_head(tmp_path, caplog):
    torch.manual_seed(0)
    encoder = Wav2Vec2ForPreTraining(Wav2Vec2Config(**{**SIZES, "codevector_dim": 8, "proj_codevector_dim": 8}))
    encoder.save_pretrained(tmp_path)
    config = load(str(tmp_path), LARGER, final_dropout=0.25, hidden_dropout=None)
    assert (config.final_dropout, config.hidden_dropout, config.vocab_size) == (0.25, 0.0, len(LARGER.tokens))
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
    model = recognisers.build(config, LARGER, str(tmp_path))
    assert model.head_is_new
    assert "head begins at random" in caplog.text
    assert model.lm_head.weight.shape == (len(LARGER.tokens), 16)
    for name, weight in model.wav2vec2.state_dict().items():
        torch.testing.assert_close(weight, encoder.wav2vec2.state_dict()[name], rtol=0, atol=0)


def test_layers_on_top_may_be_new(tmp_path):
    below = recognisers.build(load(config_folder(tmp_path / "config", "bert")), VOCABULARY)
    folder = write(below, tmp_path / "below", "bert")
    config = load(folder, add_adapter=True)
    torch.manual_seed(0)
    model = recognisers.build(config, VOCABULARY, folder)
    assert torch.equal(model.base_model.encoder.layers[0].ffn1.output_dense.weight,
                       below.base_model.encoder.layers[0].ffn1.output_dense.weight)
    assert model.base_model.adapter.layers[0].residual_conv.weight.std() > 0
    assert recognisers.samples_per_frame(config) == 640


def test_a_head_is_kept_for_its_own_vocabulary_only(recogniser):
    folder, trained = recogniser
    again = recognisers.build(load(folder), VOCABULARY, folder)
    assert not again.head_is_new
    assert torch.equal(again.lm_head.weight, trained.lm_head.weight)
    heads = []
    for seed, vocabulary in [(1, OTHER), (2, OTHER), (1, OTHER), (1, LARGER)]:
        torch.manual_seed(seed)
        model = recognisers.build(load(folder, vocabulary), vocabulary, folder)
        assert model.head_is_new
        assert model.lm_head.out_features == len(vocabulary.tokens)
        assert model.lm_head.weight.std().item() == pytest.approx(0.02, rel=0.3)
        assert not model.lm_head.bias.any()
        heads.append(model.lm_head.weight)
    assert torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], trained.lm_head.weight)


def test_configs_that_are_refused(tmp_path):
    name = config_folder(tmp_path / "bert", "bert")
    with pytest.raises(InputError, match="--num_negatives: wav2vec2-bert models have no such setting"):
        load(name, num_negatives=5)
    assert load(name, num_negatives=None).vocab_size == len(VOCABULARY.tokens)
    for kind in ("whisper", "parakeet_ctc"):
        AutoConfig.for_model(kind).save_pretrained(tmp_path / kind)
        with pytest.raises(InputError, match=f"its model_type is {kind}; fine-tuned here are wav2vec2, wav2vec2-conformer"):
            load(str(tmp_path / kind))


def test_weights_that_are_refused(recogniser, tmp_path):
    folder, _ = recogniser
    bare = config_folder(tmp_path / "bare")
    with pytest.raises(InputError, match=f"{bare}: has no weights: --config_name {bare} starts from random ones"):
        recognisers.build(load(bare), VOCABULARY, bare)
    deeper = load(folder)
    deeper.num_hidden_layers = 3
    with pytest.raises(InputError, match=r"holds other weights than the config asks for: wav2vec2.encoder.layers.2"):
        recognisers.build(deeper, VOCABULARY, folder)
    (tmp_path / "recogniser" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match="--model_name_or_path"):
        recognisers.build(load(folder), VOCABULARY, folder)
    with pytest.raises(InputError, match="--model_name_or_path"):
        recognisers.load_recogniser(folder)
    with pytest.raises(InputError, match="--config_name nowhere/to-be-found"):
        load("nowhere/to-be-found")


def test_what_is_no_recogniser_is_not_listened_to(recogniser, tmp_path):
    folder, _ = recogniser
    Wav2Vec2ForPreTraining(Wav2Vec2Config(**{**SIZES, "codevector_dim": 8, "proj_codevector_dim": 8})).save_pretrained(folder)
    with pytest.raises(InputError, match="is no recogniser: it has no lm_head"):
        recognisers.load_recogniser(folder)


def test_each_language_has_its_adapters_and_its_head(tmp_path):
    """Two languages with vocabularies of different sizes in one directory; the shared weights stay as they are."""
    base = write(recognisers.build(load(config_folder(tmp_path / "config", "wav2vec2-large")), VOCABULARY), tmp_path / "base")
    given, wanted, source = torch.randn(1, 4000), {}, base
    for language, vocabulary in [("aaa", VOCABULARY), ("bbb", LARGER)]:
        model = recognisers.build(load(source, vocabulary), vocabulary, source, language)
        assert model.head_is_new
        learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert learning == set(model._get_adapters())
        for name in learning:
            model.get_parameter(name).data += torch.randn_like(model.get_parameter(name))
        source = write(model, tmp_path / language, vocabulary=vocabulary, language=language)
        wanted[language] = model.eval()(given)["log_probs"]
    assert {"adapter.aaa.safetensors", "adapter.bbb.safetensors"} <= set(os.listdir(source))
    for language, vocabulary in [("aaa", VOCABULARY), ("bbb", LARGER)]:
        stock = Wav2Vec2ForCTC.from_pretrained(source, target_lang=language, ignore_mismatched_sizes=True).eval()
        torch.testing.assert_close(stock(given).logits.log_softmax(-1), wanted[language], rtol=1e-5, atol=1e-6)
        ours, _, read = recognisers.load_recogniser(source, language)
        torch.testing.assert_close(ours(given)["log_probs"], wanted[language], rtol=1e-5, atol=1e-6)
        assert read == vocabulary
        again = recognisers.build(load(source, vocabulary), vocabulary, source, language)
        assert not again.head_is_new
        torch.testing.assert_close(again.eval()(given)["log_probs"], wanted[language], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(recognisers.load_recogniser(source)[0](given)["log_probs"], wanted["bbb"], rtol=1e-5, atol=1e-6)


def test_adapters_of_a_new_language_begin_anew(tmp_path):
    """transformers' init_adapter_layers changes nothing that was loaded from a file."""
    base = write(recognisers.build(load(config_folder(tmp_path / "config", "wav2vec2-mms")), VOCABULARY), tmp_path / "base")
    stock = Wav2Vec2ForCTC.from_pretrained(base)
    model = recognisers.build(load(base), VOCABULARY, base, "ccc")
    for name, weight in stock._get_adapters().items():
        assert weight.dim() == 1 or not torch.equal(weight, model.get_parameter(name))
    assert torch.equal(stock.wav2vec2.feature_projection.projection.weight, model.wav2vec2.feature_projection.projection.weight)


def test_only_wav2vec2_has_adapters(tmp_path):
    config = load(config_folder(tmp_path, "hubert"))
    with pytest.raises(InputError, match="--adapter_language: only wav2vec2 models have adapters"):
        recognisers.build(config, VOCABULARY, None, "eng")


def test_a_language_that_is_not_there(recogniser):
    with pytest.raises(InputError, match=r"--adapter_language xyz: .* has no adapters"):
        recognisers.load_recogniser(recogniser[0], "xyz")


def test_a_tokenizer_may_know_more_than_the_head(recogniser, tmp_path):
    """As tutorials leave it: <s> and </s> are added behind the head's tokens; the other way round nothing could be spelled."""
    folder, model = recogniser
    recognisers.describe(extractor_of("wav2vec2"), LARGER, TextRules(), None, model, folder)
    assert recognisers.load_recogniser(folder)[2].tokens == LARGER.tokens[:9]
    assert recognisers.build(load(folder, LARGER), LARGER, folder).head_is_new
    model.lm_head = torch.nn.Linear(16, 30)
    model.config.vocab_size = 30
    with pytest.raises(InputError, match="its head has 30 tokens, its vocabulary 15"):
        recognisers.load_recogniser(write(model, tmp_path / "out", vocabulary=LARGER))
