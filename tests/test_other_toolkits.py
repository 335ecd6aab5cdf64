"""What comes out of training here, read by transformers, torchaudio, SpeechBrain and s3prl: the same hidden states."""

from importlib import import_module

import pytest
import torch
from conftest import write_model
from test_fairseq_checkpoints import difference, waves
from test_recognisers import LARGER, config_folder, load, write
from torch.nn.functional import layer_norm
from transformers import AutoFeatureExtractor, AutoModel, Wav2Vec2ForCTC, Wav2Vec2ForPreTraining, Wav2Vec2Model

from wavtrain.models import encoders
from wavtrain.models.contrastive import ObjectiveSettings
from wavtrain.recognition import recognisers

KINDS = {"group": {}, "layer": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}}


def module_of(name: str):
    """Of a package that is not needed here, and which may be built for another machine."""
    try:
        return import_module(name)
    except (ImportError, OSError) as error:
        pytest.skip(f"needs {name.split('.')[0]} ({error})")


@pytest.fixture(params=KINDS)
def pretrained(request, tmp_path):
    """A directory as pretraining leaves it, and what the model that was trained makes of `waves()`, the input first."""
    torch.manual_seed(0)
    name = str(write_model(tmp_path / "config", **KINDS[request.param]))
    model = encoders.build(encoders.load_config(name, "", {}), ObjectiveSettings()).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.2)
    folder = tmp_path / "pretrained"
    model.save_pretrained(folder)
    encoders.describe(encoders.load_feature_extractor(name, ""), model, str(folder))
    with torch.no_grad():
        return str(folder), hidden_states(model.base_model, waves())


def hidden_states(model, heard: torch.Tensor) -> list[torch.Tensor]:
    found = model(heard, output_hidden_states=True)
    return [*found.hidden_states[:-1], found.last_hidden_state]


@torch.no_grad()
def test_transformers_hears_what_was_trained(pretrained):
    folder, wanted = pretrained
    assert len(wanted) == 3
    for kind in (AutoModel, Wav2Vec2Model, Wav2Vec2ForPreTraining):
        model = kind.from_pretrained(folder).eval()
        assert type(model).__module__.startswith("transformers.")
        for found, each in zip(hidden_states(model.base_model, waves()), wanted, strict=True):
            assert difference(found, each) < 1e-5


@torch.no_grad()
def test_also_in_half_precision_and_in_shards(pretrained, tmp_path):
    folder, wanted = pretrained
    whole = Wav2Vec2ForPreTraining.from_pretrained(folder)
    whole.save_pretrained(tmp_path / "shards", max_shard_size="20kB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    assert difference(hidden_states(AutoModel.from_pretrained(tmp_path / "shards"), waves())[-1], wanted[-1]) < 1e-5
    whole.half().save_pretrained(tmp_path / "half")
    ours = encoders.build(encoders.load_config(str(tmp_path / "half"), "", {}), ObjectiveSettings(), str(tmp_path / "half"))
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    assert 1e-5 < difference(hidden_states(ours.base_model.eval(), waves())[-1], wanted[-1]) < 2e-2


@torch.no_grad()
def test_torchaudio(pretrained, tmp_path):
    utils = module_of("torchaudio.models.wav2vec2.utils")
    folder, wanted = pretrained
    model = utils.import_huggingface_model(Wav2Vec2Model.from_pretrained(folder)).eval()
    layers, _ = model.extract_features(waves())
    assert difference(model(waves())[0], wanted[-1]) < 1e-5
    assert len(layers) == len(wanted) - 1
    assert difference(layers[0], wanted[1]) < 1e-5
    recogniser = recognisers.build(load(config_folder(tmp_path / "asr_config", "wav2vec2"), LARGER), LARGER).eval()
    torch.nn.init.normal_(recogniser.lm_head.weight)
    asr = write(recogniser, tmp_path / "asr", "wav2vec2", LARGER)
    model = utils.import_huggingface_model(Wav2Vec2ForCTC.from_pretrained(asr)).eval()
    assert difference(model(waves())[0].log_softmax(-1), recogniser(waves())["log_probs"]) < 1e-5


@torch.no_grad()
def test_speechbrain(pretrained, tmp_path):
    wav2vec2 = module_of("speechbrain.integrations.huggingface.wav2vec2")
    folder, _ = pretrained
    model = wav2vec2.Wav2Vec2(source=folder, save_path=str(tmp_path / "of_speechbrain"), freeze=True, output_all_hiddens=True)
    assert model.normalize_wav  # as preprocessor_config.json says
    heard = layer_norm(waves(), waves().shape[1:])
    wanted = hidden_states(Wav2Vec2Model.from_pretrained(folder).eval(), heard)
    assert difference(model(waves())[:-1], torch.stack(wanted[:-1])) < 1e-5
    model.output_all_hiddens = False
    assert difference(model(waves()), wanted[-1]) < 1e-5


@torch.no_grad()
def test_s3prl(pretrained):
    upstream = module_of("s3prl.upstream.hf_wav2vec2.hubconf")
    folder, _ = pretrained
    heard = AutoFeatureExtractor.from_pretrained(folder)(list(waves().numpy()), sampling_rate=16_000, return_tensors="pt")
    wanted = hidden_states(Wav2Vec2Model.from_pretrained(folder).eval(), heard["input_values"])
    found = upstream.hf_wav2vec2_custom(folder).eval()(list(waves()))["hidden_states"]
    assert len(found) == len(wanted)
    assert difference(torch.stack(found[:-1]), torch.stack(wanted[:-1])) < 1e-5
