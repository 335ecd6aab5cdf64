"""Checkpoints of fairseq become models that compute what fairseq's equations say, to rounding; none runs code."""

import json
import os
import pickle
import subprocess
import sys
import types
import zipfile
from argparse import Namespace
from collections import defaultdict
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import sound
from fairseq_reference import Reference, Shape, random_tensors
from transformers import (
    AutoModel,
    AutoModelForCTC,
    AutoModelForPreTraining,
    AutoProcessor,
    HubertModel,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    Wav2Vec2Model,
)

from wavtrain import InputError
from wavtrain.conversion import from_fairseq
from wavtrain.models import encoders
from wavtrain.models.contrastive import ObjectiveSettings
from wavtrain.recognition import recognisers

BASE = Shape()
LARGE = Shape(norm="layer", norm_first=True, conv_bias=True)
SHAPES = {"base": BASE, "large": LARGE, "base_with_bias": Shape(conv_bias=True),
          "layer_norms_last": replace(LARGE, norm_first=False), "no_projection": Shape(hidden=16, positions=(7, 2)),
          "three_groups": Shape(groups=3, codevector=21)}
SYMBOLS = ["|", "E", "T", "A", "'"]
HUBERT_ONLY = {"label_embs_concat": torch.zeros(10, 24)}


def settings_of(shape: Shape, **more) -> dict:
    """The flags of pretraining, as far as they concern the model."""
    return {"arch": "wav2vec2", "encoder_attention_heads": shape.heads, "conv_feature_layers": shape.as_written,
            "layer_norm_first": shape.norm_first, "extractor_mode": "layer_norm" if shape.norm == "layer" else "default",
            "normalize": shape.norm == "layer", "activation_fn": "gelu", "dropout": 0.15, "dropout_input": 0.05,
            "encoder_layerdrop": 0.07, "mask_prob": 0.6, "mask_length": 9, "logit_temp": 0.2, "num_negatives": 7, **more}


def recogniser_tensors(shape: Shape) -> dict[str, torch.Tensor]:
    """Of fine-tuning: what is of pretraining only is gone, a projection to the symbols came."""
    of_encoder = {name: each for name, each in random_tensors(shape).items()
                  if not name.startswith(("quantizer", "project_q", "final_proj"))}
    source = torch.Generator().manual_seed(1)
    head = {"weight": torch.randn(4 + len(SYMBOLS), shape.hidden, generator=source), "bias": torch.ones(4 + len(SYMBOLS))}
    return {**{f"w2v_encoder.w2v_model.{name}": each for name, each in of_encoder.items()},
            **{f"w2v_encoder.proj.{name}": each for name, each in head.items()}}


def recogniser_settings(shape: Shape) -> Namespace:
    return Namespace(arch="wav2vec_ctc", w2v_args=Namespace(**settings_of(shape)), dropout=0.0, layerdrop=0.1, mask_prob=0.5,
                     mask_channel_prob=0.25, apply_mask=True, normalize=shape.norm == "layer", final_dropout=0.02)


def save(path, tensors, old_file: bool = False, **more) -> str:
    """A file such as fairseq writes."""
    path.parent.mkdir(exist_ok=True)
    torch.save({"args": None, "cfg": None, "model": tensors, "extra_state": {"epoch": 1}, "last_optimizer_state": None, **more},
               path, _use_new_zipfile_serialization=not old_file)
    return str(path)


def write_dictionary(path, symbols=tuple(SYMBOLS)) -> None:
    path.write_text("".join(f"{symbol} 1\n" for symbol in symbols), encoding="utf-8")


def waves(num: int = 2, samples: int = 4000) -> torch.Tensor:
    return torch.from_numpy(np.stack([sound(1, seed)[:samples] / 32768 for seed in range(num)]).astype(np.float32))


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest, relative to the largest value."""
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.fixture
def base(tmp_path):
    """A checkpoint of BASE in pretraining."""
    return save(tmp_path / "base.pt", random_tensors(BASE), args=Namespace(**settings_of(BASE)))


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_a_pretrained_model_computes_what_fairseqs_equations_say(tmp_path, name):
    shape = SHAPES[name]
    tensors = random_tensors(shape)
    path = save(tmp_path / "checkpoint.pt", tensors, args=Namespace(**settings_of(shape)))
    from_fairseq.main([path, str(tmp_path / "model")])
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "model").eval()
    assert type(model) is Wav2Vec2ForPreTraining
    reference, heard = Reference(shape, tensors), waves()
    found = model.wav2vec2(heard, output_hidden_states=True)
    assert difference(found.extract_features, reference.features(heard)) < 1e-5
    states = reference.hidden_states(heard)
    assert len(found.hidden_states) == shape.layers + 1
    for ours, wanted in zip((*found.hidden_states[:-1], found.last_hidden_state), states, strict=True):
        assert difference(ours, wanted) < 1e-5
    mask = torch.rand(states[0].shape[:2], generator=torch.Generator().manual_seed(2)) < 0.5
    assert 0 < mask.sum() < mask.numel()
    others = torch.randint(mask.shape[1], (*mask.shape, 7), generator=torch.Generator().manual_seed(3))
    found = model(heard, mask_time_indices=mask)
    codes, predicted = found.projected_quantized_states, found.projected_states
    assert difference(codes, reference.quantized(heard)) < 1e-5
    wrong = torch.stack([of_clip[places] for of_clip, places in zip(codes, others, strict=True)]).permute(2, 0, 1, 3)
    logits = model.compute_contrastive_logits(codes[None], wrong, predicted, model.config.contrastive_logits_temperature)
    assert difference(logits, reference.contrastive_logits(heard, mask, others, 0.2)) < 1e-5


@torch.no_grad()
def test_the_scripts_here_and_other_classes_take_it_up(base, tmp_path, capsys):
    folder = str(tmp_path / "model")
    from_fairseq.main([base, folder])
    assert f"{folder}: Wav2Vec2ForPreTraining, {len(random_tensors(BASE))} tensors" in capsys.readouterr().out
    states = Reference(BASE, random_tensors(BASE)).hidden_states(waves())
    for kind in (AutoModel, Wav2Vec2Model):
        model = kind.from_pretrained(folder).eval()
        assert difference(model(waves()).last_hidden_state, states[-1]) < 1e-5
    config = encoders.load_config(folder, "--model_name_or_path", {})
    ours = encoders.build(config, ObjectiveSettings(), folder).eval()
    hidden, _ = ours.base_model.feature_projection(ours._features(waves()))
    assert difference(ours.base_model.encoder(hidden).last_hidden_state, states[-1]) < 1e-5
    assert config.architectures == ["Wav2Vec2ForPreTraining"]
    told = {"hidden_dropout": 0.15, "feat_proj_dropout": 0.05, "layerdrop": 0.07, "mask_time_prob": 0.6, "mask_time_length": 9,
            "contrastive_logits_temperature": 0.2, "num_negatives": 7, "mask_time_min_masks": 2}
    assert {name: getattr(config, name) for name in told} == told
    assert not encoders.load_feature_extractor(folder, "--model_name_or_path").do_normalize


@pytest.mark.parametrize("name", ["base", "large"])
@torch.no_grad()
def test_a_recogniser_gives_fairseqs_logits_and_has_its_vocabulary(tmp_path, name):
    shape = SHAPES[name]
    tensors = recogniser_tensors(shape)
    write_dictionary(tmp_path / "dict.ltr.txt")
    from_fairseq.main([save(tmp_path / "asr.pt", tensors, args=recogniser_settings(shape)), str(tmp_path / "model")])
    of_encoder = {name.removeprefix("w2v_encoder.w2v_model."): each for name, each in tensors.items()}
    hidden = Reference(shape, of_encoder).hidden_states(waves())[-1]
    wanted = hidden @ tensors["w2v_encoder.proj.weight"].T + tensors["w2v_encoder.proj.bias"]
    model = AutoModelForCTC.from_pretrained(tmp_path / "model").eval()
    assert type(model) is Wav2Vec2ForCTC
    assert difference(model(waves()).logits, wanted) < 1e-5
    told = {"hidden_dropout": 0.0, "layerdrop": 0.1, "mask_time_prob": 0.5, "mask_time_length": 9, "mask_feature_prob": 0.25,
            "final_dropout": 0.02, "pad_token_id": 0, "vocab_size": 9}
    assert {name: getattr(model.config, name) for name in told} == told
    ours, extractor, vocabulary = recognisers.load_recogniser(str(tmp_path / "model"))
    assert difference(ours(waves())["log_probs"], wanted.log_softmax(-1)) < 1e-5
    assert vocabulary.tokens == ("<pad>", "<s>", "</s>", "<unk>", *SYMBOLS)
    assert extractor.do_normalize == (name == "large")
    best = wanted.argmax(-1)[0]
    assert vocabulary.blank == 0
    collapsed = [int(symbol) for symbol in torch.unique_consecutive(best) if symbol != 0]
    assert AutoProcessor.from_pretrained(tmp_path / "model").decode(best.tolist()) == vocabulary.spelled(collapsed)


@pytest.mark.parametrize("is_recogniser", [False, True])
@torch.no_grad()
def test_hubert(tmp_path, capsys, is_recogniser):
    tensors = recogniser_tensors(BASE) if is_recogniser else {
        name: each for name, each in {**random_tensors(BASE), **HUBERT_ONLY}.items() if "quantizer" not in name and
        "project_q" not in name}
    settings = recogniser_settings(BASE) if is_recogniser else Namespace(**settings_of(BASE))
    settings.arch = "hubert_ctc" if is_recogniser else "hubert"
    write_dictionary(tmp_path / "dict.ltr.txt")
    from_fairseq.main([save(tmp_path / "hubert.pt", tensors, args=settings), str(tmp_path / "model")])
    of_encoder = {name.removeprefix("w2v_encoder.w2v_model."): each for name, each in tensors.items()}
    model = AutoModel.from_pretrained(tmp_path / "model").eval()
    assert type(model) is HubertModel
    assert difference(model(waves()).last_hidden_state, Reference(BASE, of_encoder).hidden_states(waves())[-1]) < 1e-5
    if not is_recogniser:
        assert "no use for it: final_proj.weight, final_proj.bias, label_embs_concat" in capsys.readouterr().out
    else:
        assert AutoModelForCTC.from_pretrained(tmp_path / "model").lm_head.bias.tolist() == [1.0] * 9


def class_of_others(monkeypatch, module: str, name: str) -> type:
    """A class that pickles by this name, in a module that is gone when the test says so."""
    parts = module.split(".")
    for folder in (".".join(parts[:length]) for length in range(1, len(parts) + 1)):
        if folder not in sys.modules:
            monkeypatch.setitem(sys.modules, folder, types.ModuleType(folder))
    found = type(name, (), {"__module__": module})
    setattr(sys.modules[module], name, found)
    return found


def as_omegaconf(settings, monkeypatch):
    """As nodes with the names and fields that omegaconf pickles."""
    container, leaf, metadata = (class_of_others(monkeypatch, f"omegaconf.{module}", name) for module, name in (
        ("dictconfig", "DictConfig"), ("nodes", "AnyNode"), ("base", "ContainerMetadata")))

    def node(value, parent):
        made = container() if isinstance(value, dict) else leaf()
        made._metadata, made._parent = metadata(), parent
        made._metadata.object_type, made._metadata.resolver_cache = dict, defaultdict(dict, env={})
        if isinstance(value, dict):
            made._content = {name: node(each, made) for name, each in value.items()}
        else:
            made._val = value
        return made

    return node(settings, None)


def files_of(words: list[str], folder) -> dict[str, bytes]:
    from_fairseq.main([words[0], str(folder), *words[1:]])
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("kind", ["namespace", "old file", "omegaconf"])
def test_every_form_of_settings_says_the_same(tmp_path, monkeypatch, kind):
    tensors, flat = recogniser_tensors(LARGE), recogniser_settings(LARGE)
    flat.normalize = flat.w2v_args.normalize = False  # is not what would be guessed
    elsewhere = {"normalize": "${task.normalize}", "data": "???", "labels": None}
    nested = {"common": {"seed": 1}, "task": {"_name": "audio_pretraining", "normalize": False},
              "model": {**vars(flat), **elsewhere, "_name": "wav2vec_ctc",
                        "w2v_args": {"task": {"normalize": False}, "model": {**vars(flat.w2v_args), **elsewhere}}}}
    more = {"cfg": as_omegaconf(nested, monkeypatch)} if kind == "omegaconf" else {"args": flat}
    path = save(tmp_path / "asr.pt", tensors, old_file=kind == "old file", **more)
    monkeypatch.undo()
    assert "omegaconf" not in sys.modules
    write_dictionary(tmp_path / "dict.txt")
    write_dictionary(tmp_path / "dict.ltr.txt", "xyz")  # is not looked at where another is named
    found = files_of([path, str(tmp_path / "dict.txt")], tmp_path / "model")
    as_dicts = save(tmp_path / "dicts.pt", tensors, cfg=nested)
    assert found == files_of([as_dicts, str(tmp_path / "dict.txt")], tmp_path / "other")
    assert {"model.safetensors", "vocab.json", "tokenizer_config.json"} <= found.keys()
    assert not json.loads(found["preprocessor_config.json"])["do_normalize"]
    config = json.loads(found["config.json"])
    assert (config["num_attention_heads"], config["do_stable_layer_norm"], config["layerdrop"]) == (4, True, 0.1)


def test_newer_checkpoints_bring_their_dictionary(tmp_path, monkeypatch):
    dictionary = class_of_others(monkeypatch, "fairseq.data.dictionary", "Dictionary")()
    dictionary.symbols = ["<s>", "<pad>", "</s>", "<unk>", *SYMBOLS]
    of_task = {"args": recogniser_settings(BASE), "task_state": {"target_dictionary": dictionary}}
    path = save(tmp_path / "asr.pt", recogniser_tensors(BASE), **of_task)
    monkeypatch.undo()
    write_dictionary(tmp_path / "dict.txt")
    assert files_of([path], tmp_path / "model") == files_of([path, str(tmp_path / "dict.txt")], tmp_path / "other")


def test_phones_make_a_recogniser_of_phones(tmp_path):
    write_dictionary(tmp_path / "dict.txt", ["aa", "ae", "b", "d", "sil"])
    path = save(tmp_path / "asr.pt", recogniser_tensors(BASE), args=recogniser_settings(BASE))
    from_fairseq.main([path, str(tmp_path / "model"), str(tmp_path / "dict.txt")])
    _, _, vocabulary = recognisers.load_recogniser(str(tmp_path / "model"))
    assert (vocabulary.unit, vocabulary.spelled([4, 6])) == ("phones", "aa b")


def test_without_settings_models_are_taken_for_what_is_published(tmp_path, capsys):
    convolutions = ((8, 10, 5), *[(8, 3, 2)] * 4, *[(8, 2, 2)] * 2)  # of the published kernels
    shape = replace(LARGE, hidden=768, heads=12, layers=1, inner=16, positions=(4, 16), convolutions=convolutions)
    settings = settings_of(shape, conv_feature_layers="[(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8,2,2)] * 2")
    path = save(tmp_path / "told.pt", random_tensors(shape), args=Namespace(**settings))
    told = files_of([path], tmp_path / "told")
    assert "taken as in published" not in capsys.readouterr().out
    guessed = files_of([save(tmp_path / "bare.pt", random_tensors(shape))], tmp_path / "guessed")
    assert ("taken as in published models: conv_feature_layers as published, layer_norm_first True, "
            "encoder_attention_heads 12, normalize True") in capsys.readouterr().out
    assert told["model.safetensors"] == guessed["model.safetensors"]
    first, second = (json.loads(each["config.json"]) for each in (told, guessed))
    drawn = ("dropout", "drop", "mask_time", "negatives", "temperature")  # of training
    assert [name for name in first if first[name] != second[name] and not any(part in name for part in drawn)] == []


def changed(without=(), **more) -> dict[str, torch.Tensor]:
    return {**{name: each for name, each in random_tensors(BASE).items() if name not in without}, **more}


@pytest.mark.parametrize(("tensors", "said"), [
    (changed(**{"encoder.layers.0.adapter.weight": torch.ones(1), "target_glu.0.bias": torch.ones(1)}),
     "no model here has encoder.layers.0.adapter.weight, target_glu.0.bias"),
    (changed(without=["encoder.layers.1.fc2.bias"]), "no tensors for wav2vec2.encoder.layers.1.feed_forward.output_de"),
    (changed(without=["post_extract_proj.weight", "post_extract_proj.bias"]), "no tensors for wav2vec2.feature_projection"),
    (changed(without=["encoder.pos_conv.0.weight_v"]), "no wav2vec 2.0 or HuBERT of fairseq: it has no tensor 'encoder.pos_"),
    (changed(without=["quantizer.vars"]), "it has no tensor 'quantizer.vars'"),
    (changed(final_proj=torch.ones(1)), "no model here has final_proj"),
    (changed(**{"encoder.layers.2.fc1.bias": torch.ones(3)}), r"shape than the model's .*intermediate_dense.bias \(3,\)"),
    ({}, "no tensors under `model`"),
    ({"fc.weight": "text"}, "no tensors under `model`"),
])
def test_no_tensor_is_lost_and_none_is_made_up(tmp_path, tensors, said):
    path = save(tmp_path / "checkpoint.pt", tensors, args=Namespace(**settings_of(BASE)))
    with pytest.raises(InputError, match=f"{path}: .*{said}"):
        from_fairseq.convert(path, str(tmp_path / "model"))
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_dir()) == []


@pytest.mark.parametrize(("settings", "said"), [
    ({"encoder_attention_heads": None}, "nothing says how many encoder_attention_heads"),
    ({"conv_feature_layers": None}, "strides of its convolutions are not known"),
    ({"conv_feature_layers": "[(12, 10, 5)] * 4"}, "strides of its convolutions are not known"),
    ({"conv_feature_layers": "__import__('os').system('x')"}, "strides of its convolutions are not known"),
    ({"activation_fn": "tanh"}, "its activation_fn is tanh"),
    ({"encoder_attention_heads": 5}, "cannot be converted"),
    ({"encoder_attention_heads": "many"}, "cannot be converted"),
])
def test_settings_that_do_not_fit_are_refused(tmp_path, settings, said):
    path = save(tmp_path / "checkpoint.pt", random_tensors(BASE), args=Namespace(**{**settings_of(BASE), **settings}))
    with pytest.raises(InputError, match=said):
        from_fairseq.convert(path, str(tmp_path / "model"))


def test_dictionaries_that_do_not_fit_are_refused(tmp_path):
    path = save(tmp_path / "asr.pt", recogniser_tensors(BASE), args=recogniser_settings(BASE))
    words = [path, str(tmp_path / "model")]
    with pytest.raises(InputError, match=r"no dict.ltr.txt beside it .* its 9 outputs mean: name its dictionary after OUT_DIR"):
        from_fairseq.main(words)
    write_dictionary(tmp_path / "dict.ltr.txt", "|AB")
    with pytest.raises(InputError, match=r"dict.ltr.txt: has 7 symbols, .* the recogniser 9 outputs"):
        from_fairseq.main(words)
    (tmp_path / "other.txt").write_text("A\n")
    for name, said in (("other.txt", "line 1 is not a token and its count"), ("none.txt", "is no file")):
        with pytest.raises(InputError, match=f"{name}: .*{said}"):
            from_fairseq.main([*words, str(tmp_path / name)])
    assert not (tmp_path / "model").exists()


class Intruder:
    """A pickle that makes a file when it is read."""

    def __init__(self, call, *given):
        self.call, self.given = call, given

    def __reduce__(self):
        return self.call, self.given


@pytest.mark.parametrize("old_file", [False, True])
def test_what_a_checkpoint_names_is_not_run(tmp_path, old_file):
    intruded = tmp_path / "intruded"
    for number, intruder in enumerate([Intruder(open, str(intruded), "w"),
                                       Intruder(eval, f"open({str(intruded)!r}, 'w')"),
                                       Intruder(subprocess.check_call, ["touch", str(intruded)])]):
        settings = Namespace(**settings_of(BASE))
        path = save(tmp_path / f"{number}.pt", random_tensors(BASE), old_file, args=settings, best=intruder)
        folder = tmp_path / f"model{number}"
        from_fairseq.convert(path, str(folder))
        assert (folder / "model.safetensors").exists()  # what it would have made is as if it were not there
        assert not intruded.exists()
        (tmp_path / "bare.pt").write_bytes(pickle.dumps(intruder))
        torch.save(intruder, tmp_path / "alone.pt", _use_new_zipfile_serialization=not old_file)
        for name in ("bare.pt", "alone.pt"):
            with pytest.raises(InputError, match=f"{name}: is"):
                from_fairseq.convert(str(tmp_path / name), str(tmp_path / "none"))
        assert not intruded.exists()
        torch.load(path, weights_only=False)  # that it can
        assert intruded.exists()
        intruded.unlink()
    path = save(tmp_path / "system.pt", random_tensors(BASE), old_file, best=Intruder(os.system, f"touch {intruded}"))
    with pytest.raises(InputError, match=r"system.pt: is damaged, or would run programs of this machine; it was not read"):
        from_fairseq.convert(path, str(tmp_path / "none"))
    assert not intruded.exists()


def test_a_text_file_is_called_that_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"notes.txt: is no checkpoint, as torch.save has not written it: name the .pt"):
        from_fairseq.convert(str(tmp_path / "notes.txt"), str(tmp_path / "none"))


def test_damaged_files_are_refused_in_a_line(tmp_path, base):
    content = (tmp_path / "base.pt").read_bytes()
    generator = np.random.default_rng(0)
    with zipfile.ZipFile(base) as archive:
        place = archive.getinfo(next(name for name in archive.namelist() if name.endswith("data.pkl"))).header_offset
    cases = [b"", b"text", content[: len(content) // 2]]
    for _ in range(20):  # within the pickle
        damaged = bytearray(content)
        for at in place + generator.integers(100, 6000, 20):
            damaged[at] = generator.integers(256)
        cases.append(bytes(damaged))
    for number, case in enumerate(cases):
        path = tmp_path / "damaged.pt"
        path.write_bytes(case)
        with suppress(InputError) if number > 2 else pytest.raises(InputError, match=r"damaged.pt: "):
            from_fairseq.convert(str(path), str(tmp_path / f"model{number}"))
    with pytest.raises(InputError, match=r"none.pt: No such file"):
        from_fairseq.convert(str(tmp_path / "none.pt"), str(tmp_path / "model"))


def test_it_says_how_it_is_called_and_keeps_a_folder_that_is_there(tmp_path, base):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("mine")
    with pytest.raises(InputError, match=r"full: is there already: name a new folder"):
        from_fairseq.main([base, str(tmp_path / "full")])
    with pytest.raises(InputError, match=r"python -m wavtrain.conversion.from_fairseq CHECKPOINT.pt OUT_DIR \[DICT.txt\]"):
        from_fairseq.main([base])
    (tmp_path / "empty").mkdir()
    from_fairseq.main([base, str(tmp_path / "empty")])
    assert (tmp_path / "empty" / "model.safetensors").exists()
    assert (tmp_path / "full" / "config.json").read_text() == "mine"
