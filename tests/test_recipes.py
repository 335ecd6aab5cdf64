"""The published models and recipes: they load, have the published sizes, and say the hours of speech per update they have."""

import csv
import json
import re
import shlex

import pytest
import torch
import yaml
from conftest import ROOT
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForPreTraining

import run_ctc_decoding
import run_ctc_finetuning
from wavtrain import arguments
from wavtrain.recognition import recognisers
from wavtrain.recognition.vocabularies import build_vocabulary
from wavtrain.schedules import Schedule, learning_rate_factor

SCRIPT = "run_wav2vec2_pretraining_no_trainer.py"
MODELS = sorted((ROOT / "configs" / "models").iterdir())
RECIPES = [path for path in sorted((ROOT / "configs").glob("*.yaml")) if f" {SCRIPT} " in path.read_text()]
FINETUNING = [path for path in sorted((ROOT / "configs").glob("ctc_*.yaml")) if path.stem != "ctc_connected_digits"]
FLAGS = set("""
    dataset_name dataset_config_names dataset_split_names validation_split_names validation_split_percentage
    min_duration_in_seconds max_duration_in_seconds model_name_or_path init_from
    hidden_dropout attention_dropout activation_dropout feat_proj_dropout feat_quantizer_dropout layerdrop
    per_device_train_batch_size per_device_eval_batch_size max_batch_duration_in_seconds random_crop_in_seconds uneven_clips
    mask_time_prob mask_time_length require_same_masks cross_sample_negatives codebook_negatives diversity_loss_weight
    feature_penalty_weight feature_grad_mult learning_rate weight_decay exempt_norms_and_biases adam_beta1 adam_beta2
    adam_epsilon max_grad_norm lr_scheduler_type num_warmup_steps max_train_steps num_train_epochs gradient_accumulation_steps
    gradient_checkpointing mixed_precision max_gumbel_temperature min_gumbel_temperature gumbel_temperature_decay seed
    logging_steps saving_steps eval_steps save_total_limit output_dir""".split())

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "codevector_dim": 256}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
         "codevector_dim": 768}
GROUP = {"feat_extract_norm": "group", "conv_bias": False}
LAYER = {"feat_extract_norm": "layer", "conv_bias": True}
POST, PRE = {"do_stable_layer_norm": False}, {"do_stable_layer_norm": True}
DROPOUTS = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "feat_quantizer_dropout",
            "layerdrop")
PUBLISHED = {  # architecture, dropouts in the order above, millions of parameters: published (BASE, LARGE) or counted
    "wav2vec2-base": (BASE | GROUP | POST, (0.1, 0.1, 0.0, 0.1, 0.1, 0.05), 95),
    "wav2vec2-large": (LARGE | GROUP | POST, (0.1, 0.1, 0.0, 0.1, 0.1, 0.2), 317),
    "wav2vec2-large-lv60": (LARGE | LAYER | PRE, (0.0, 0.1, 0.0, 0.1, 0.1, 0.0), 317),
    "wav2vec2-conformer-base": (BASE | GROUP, (0.1, 0.1, 0.1, 0.1, 0.1, 0.05), 180),
    "wav2vec2-conformer-large": (LARGE | LAYER, (0.0, 0.0, 0.0, 0.0, 0.0, 0.0), 621),
}
ENCODERS = {"hubert-base": 94, "w2v-bert-2.0": 580}  # millions of parameters, without a head: published 95 and 580
TINY = {"wav2vec2-tiny", "wav2vec2-bert-tiny"}
OF_ALL = {"conv_dim": [512] * 7, "conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2],
          "mask_time_prob": 0.65, "mask_time_length": 10, "mask_time_min_masks": 2, "mask_feature_prob": 0.0,
          "num_negatives": 100, "num_codevector_groups": 2, "num_codevectors_per_group": 320,
          "contrastive_logits_temperature": 0.1, "diversity_loss_weight": 0.1}
CONFORMER = {"position_embeddings_type": "relative", "conv_depthwise_kernel_size": 31, "hidden_act": "swish"}
TRANSFORMER = {"num_conv_pos_embeddings": 128, "num_conv_pos_embedding_groups": 16}


def num_parameters(config) -> int:
    with torch.device("meta"):
        model = AutoModelForPreTraining.from_config(config)
    assert type(model).__name__ == config.architectures[0]
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_models_are_these():
    assert {path.name for path in MODELS} == {*PUBLISHED, *ENCODERS, *TINY, "wav2vec2-base-v2"}


@pytest.mark.parametrize("folder", MODELS, ids=lambda path: path.name)
def test_models_load_and_spell_no_field_wrong(folder):
    config = AutoConfig.from_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    assert set(written) <= set(type(config)().to_dict()) | {"architectures"}
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    if config.model_type == "wav2vec2-bert":
        assert (extractor.sampling_rate, extractor.num_mel_bins * extractor.stride) == (16_000, 160)
        assert config.feature_projection_input_dim == 160
        return
    if config.model_type != "hubert":
        assert config.proj_codevector_dim == config.codevector_dim  # fairseq's final_dim is both
    is_layer_norm = config.feat_extract_norm == "layer"
    assert (extractor.sampling_rate, extractor.feature_size, extractor.padding_value) == (16_000, 1, 0.0)
    assert extractor.return_attention_mask == is_layer_norm
    assert extractor.do_normalize == is_layer_norm or folder.name == "wav2vec2-tiny"


@pytest.mark.parametrize("name", PUBLISHED)
def test_architectures_are_the_published_ones(name):
    config = AutoConfig.from_pretrained(ROOT / "configs" / "models" / name)
    sizes, dropouts, millions = PUBLISHED[name]
    expected = OF_ALL | sizes | (CONFORMER if "conformer" in name else TRANSFORMER)
    assert {key: getattr(config, key) for key in expected} == expected
    assert tuple(getattr(config, key) for key in DROPOUTS) == dropouts
    assert round(num_parameters(config) / 1e6) == millions


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_have_the_published_sizes(name):
    config = AutoConfig.from_pretrained(ROOT / "configs" / "models" / name)
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    assert type(model).__name__ == config.architectures[0]
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == ENCODERS[name]


def test_tiny_is_tiny_and_has_frames_of_20_ms():
    config = AutoConfig.from_pretrained(ROOT / "configs" / "models" / "wav2vec2-tiny")
    assert num_parameters(config) < 2e6
    assert config.inputs_to_logits_ratio == 320


def test_a_model_of_these_sizes_makes_a_loss():
    config = AutoConfig.from_pretrained(ROOT / "configs" / "models" / "wav2vec2-tiny")
    model = AutoModelForPreTraining.from_config(config)
    frames = int(model._get_feat_extract_output_lengths(16_000))
    mask = torch.zeros(2, frames, dtype=torch.bool)
    mask[:, 10:30] = True
    negatives = torch.arange(2)[:, None, None] * frames + torch.randint(10, 30, (2, frames, 100))
    loss = model(torch.randn(2, 16_000), mask_time_indices=mask, sampled_negative_indices=negatives).loss
    assert torch.isfinite(loss)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_know_their_flags(path):
    recipe = yaml.safe_load(path.read_text())
    assert set(recipe) <= FLAGS
    model = recipe["model_name_or_path"]
    assert not model.startswith("configs/") or (ROOT / model / "config.json").is_file()
    assert recipe["num_warmup_steps"] < recipe["max_train_steps"]


@pytest.mark.parametrize("path", [*RECIPES, *FINETUNING], ids=lambda path: path.stem)
def test_recipes_begin_with_their_command_and_end_in_their_own_place(path):
    recipe = yaml.safe_load(path.read_text())
    script = SCRIPT if path in RECIPES else "run_ctc_finetuning.py"
    assert path.read_text().splitlines()[0].endswith(f" {script} --config configs/{path.name}")
    assert recipe["output_dir"] == f"runs/{path.stem}"
    texts = [value for value in recipe.values() if isinstance(value, str)]
    assert not [text for text in texts if re.fullmatch(r"[\d.e+-]+", text)], "5e-4 without a point is text in YAML"


@pytest.mark.parametrize("path", [*RECIPES, *FINETUNING], ids=lambda path: path.stem)
def test_hours_per_update_are_what_the_comment_says(path):
    text = path.read_text()
    recipe = yaml.safe_load(text)
    processes = int((re.search(r"--num_processes (\d+)", text.splitlines()[0]) or [0, 1])[1])
    clips = recipe.get("per_device_train_batch_size", 8)
    seconds = recipe.get("max_batch_duration_in_seconds") or clips * recipe.get("max_duration_in_seconds", 40)
    steps = recipe.get("gradient_accumulation_steps", 1)
    product = r"(\d+) process(?:es)? x ([\d.]+) s x (\d+)"
    said = re.search(rf"^# hours per update: (?:at most )?([\d.]+) = {product}$", text, re.MULTILINE)
    assert (int(said[2]), float(said[3]), int(said[4])) == (processes, seconds, steps)
    assert said[1] == f"{processes * seconds * steps / 3600:.2g}" or said[1] == f"{processes * seconds * steps / 3600:.2f}"
    fewer = re.search(r"^# on fewer GPUs: (.*)$", text, re.MULTILINE)
    assert fewer or processes == 1
    for other in fewer[1].split("; ") if fewer else ():
        a, b, c = map(float, re.fullmatch(product, other).groups())
        assert a * b * c == processes * seconds * steps
        assert a < processes


UPDATES = {  # updates, peak rate, warm-up, feature penalty, feature gradients, last temperature: as published
    "wav2vec2_base_librispeech": (400_000, 5e-4, 32_000, 10, 0.1, 0.5),
    "wav2vec2_large_librispeech": (250_000, 3e-4, 20_000, 10, 0.1, 0.1),
    "wav2vec2_large_lv60_paper": (600_000, 3e-4, 32_000, 10, 0.03, 0.1),
    "wav2vec2_large_lv60_fairseq_yaml": (1_000_000, 5e-3, 32_000, 0, 1.0, 0.1),
    "wav2vec2_conformer_base": (400_000, 5e-4, 32_000, 10, 0.1, 0.5),
    "wav2vec2_conformer_large": (1_000_000, 5e-3, 32_000, 0, 1.0, 0.1),
    "xlsr53": (1_000_000, 1e-3, 32_000, 0, 1.0, 0.1),
}


@pytest.mark.parametrize("name", UPDATES)
def test_recipes_hold_the_published_values(name):
    recipe = {"feature_penalty_weight": 10, "feature_grad_mult": 0.1, "min_gumbel_temperature": 0.5}
    recipe |= yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    assert tuple(recipe[key] for key in ("max_train_steps", "learning_rate", "num_warmup_steps", "feature_penalty_weight",
                                         "feature_grad_mult", "min_gumbel_temperature")) == UPDATES[name]
    assert (recipe["adam_beta2"], recipe["adam_epsilon"], recipe["weight_decay"]) == (0.98, 1e-6, 0.01)
    assert recipe["require_same_masks"] is True
    crops = {15.625: 87.5, 20: 75}  # max_sample_size and max_tokens of BASE and LARGE, in seconds
    assert crops[recipe["random_crop_in_seconds"]] == recipe["max_batch_duration_in_seconds"]
    is_group_norm = AutoConfig.from_pretrained(ROOT / recipe["model_name_or_path"]).feat_extract_norm == "group"
    assert is_group_norm or recipe["uneven_clips"] == "crop"


def test_every_recipe_is_in_the_table():
    table = (ROOT / "docs" / "recipes.md").read_text()
    assert all(f"| {path.stem} |" in table for path in [*RECIPES, *FINETUNING])
    assert all(re.search(rf"\b{path.stem}\b", table) for path in (ROOT / "configs").glob("*.yaml"))


ENCODERS_OF_PAPERS = {
    "BASE LS-960": "BASE, LibriSpeech-960", "LARGE LS-960": "LARGE, LibriSpeech-960", "LARGE LV-60k": "LARGE, Libri-Light",
    "LARGE-scratch -": "LARGE, no pretraining", "HUBERT-BASE LS-960": "HuBERT BASE, LibriSpeech-960",
    "HUBERT-LARGE LL-60k": "HuBERT LARGE, Libri-Light", "HUBERT-XL LL-60k": "HuBERT X-LARGE, Libri-Light",
    "torchaudio-HUBERT-BASE LS-960": "HuBERT BASE of torchaudio"}


def test_published_error_rates_are_all_there_and_nothing_else(shared_data):
    page = (ROOT / "docs" / "recipes.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|([^|]*)\|([^|]*)\|([^|]*)\|$", page, re.MULTILINE)
    shown = {(encoder, hours.replace(" min", "m").replace(" h", "h"), lm, rates.strip()) for encoder, hours, *columns in rows
             for lm, rates in zip(("none", "4gram", "transf"), columns, strict=True) if rates.count(" / ") == 3}
    with open(shared_data.parent / "reference" / "published_wer.csv", newline="") as file:
        published = {(ENCODERS_OF_PAPERS[f"{row['model']} {row['unlabeled']}"], row["labeled"], row["lm"],
                      " / ".join(row[part] for part in ("dev_clean", "dev_other", "test_clean", "test_other")))
                     for row in csv.DictReader(file)}
    assert shown == published


BASE_SECONDS, LARGE_SECONDS = 8 * 3_200_000 / 16_000, 20 * 1_280_000 / 16_000  # GPUs x samples of fairseq's max_tokens
LIBRISPEECH_SECONDS = 24 * 1_280_000 / 16_000  # LARGE on 960 hours
FINETUNED = {  # updates, rate, time masks, channel masks, layerdrop, frozen, seconds of speech in an update: as published
    "ctc_base_10m": (13_000, 5e-5, 0.65, 0.25, 0.1, 10_000, BASE_SECONDS),
    "ctc_base_1h": (13_000, 5e-5, 0.65, 0.25, 0.1, 10_000, BASE_SECONDS),
    "ctc_base_10h": (20_000, 5e-5, 0.65, 0.5, 0.05, 10_000, BASE_SECONDS),
    "ctc_base_100h": (80_000, 3e-5, 0.65, 0.5, 0.1, 0, BASE_SECONDS),
    "ctc_base_960h": (320_000, 1e-4, 0.5, 0.1, 0.1, 0, BASE_SECONDS),
    "ctc_lv60_10m": (13_000, 1e-4, 0.65, 0.25, 0.1, 10_000, LARGE_SECONDS),
    "ctc_lv60_1h": (13_000, 3e-4, 0.75, 0.25, 0.1, 10_000, LARGE_SECONDS),
    "ctc_lv60_10h": (20_000, 1e-4, 0.75, 0.25, 0.1, 10_000, LARGE_SECONDS),
    "ctc_lv60_100h": (80_000, 3e-5, 0.5, 0.5, 0.1, 10_000, LARGE_SECONDS),
    "ctc_lv60_960h": (320_000, 3e-5, 0.5, 0.25, 0.1, 10_000, LIBRISPEECH_SECONDS),
    "ctc_xls_r_300m_common_voice": (13_000, 3e-4, 0.75, 0.25, 0.1, 10_000, LARGE_SECONDS),
    "ctc_hubert_base_10h": (25_000, 2e-5, 0.75, 0.5, 0.1, 10_000, BASE_SECONDS),
}
SHIPPED = {"facebook/wav2vec2-base": "wav2vec2-base", "facebook/wav2vec2-large-lv60": "wav2vec2-large-lv60",
           "facebook/wav2vec2-xls-r-300m": "wav2vec2-large-lv60", "facebook/hubert-base-ls960": "hubert-base",
           "facebook/w2v-bert-2.0": "w2v-bert-2.0"}  # architectures of the checkpoints


def parsed(name: str):
    return run_ctc_finetuning.parse_arguments(["--config", str(ROOT / "configs" / f"{name}.yaml")])


def fine_tuned_config(args):
    """The config of the recipe's model, as the script would make it."""
    folder = str(ROOT / "configs" / "models" / SHIPPED[args.model_name_or_path])
    given = {name: getattr(args, name) for name in run_ctc_finetuning.CONFIG_FLAGS}
    return recognisers.load_config(folder, "--model_name_or_path", build_vocabulary(["AB"], "letters"), given)


def test_every_size_has_its_recipe():
    assert {path.stem for path in FINETUNING} == {*FINETUNED, "ctc_w2v_bert_common_voice"}


@pytest.mark.parametrize("name", FINETUNED)
def test_fine_tuning_holds_the_published_values(name):
    args = parsed(name)
    text = (ROOT / "configs" / f"{name}.yaml").read_text()
    processes = int(re.search(r"--num_processes (\d+)", text.splitlines()[0])[1])
    seconds = processes * args.gradient_accumulation_steps * args.max_batch_duration_in_seconds
    assert (args.max_train_steps, args.learning_rate, args.mask_time_prob, args.mask_feature_prob, args.layerdrop,
            args.freeze_finetune_updates, seconds) == FINETUNED[name]
    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon, args.weight_decay) == (0.9, 0.98, 1e-8, 0.0)
    assert (args.mean_over, args.feature_encoder, args.max_grad_norm) == ("utterances", None, None)
    assert args.validate_after_updates == (0 if name.endswith(("_100h", "_960h")) else 10_000)
    config = fine_tuned_config(args)
    assert (config.mask_time_length, config.mask_time_min_masks) == (10, 2)
    assert (config.mask_feature_length, config.mask_feature_min_masks) == (64, 0)
    assert (config.activation_dropout, config.layerdrop) == (0.1, FINETUNED[name][4])
    assert {getattr(config, f"{what}_dropout") for what in ("hidden", "attention", "feat_proj", "final")} == {0.0}


def fairseq_tri_stage(update: int, stages: tuple[int, int, int]) -> float:
    warmup, hold, decay = stages
    if update < warmup:
        return 0.01 + 0.99 * update / warmup
    return 1.0 if update < warmup + hold else 0.05 ** ((update - warmup - hold) / decay)


@pytest.mark.parametrize("name", FINETUNED)
def test_rates_are_those_of_the_published_stages(name):
    args = parsed(name)
    schedule, updates = arguments.options_of(Schedule, args), args.max_train_steps
    stages = (8_000, 0, 72_000) if "hubert" in name else tuple(updates * tenths // 10 for tenths in (1, 4, 5))
    assert sum(stages) == (80_000 if "hubert" in name else updates)
    corners = {0, stages[0] - 1, stages[0], stages[0] + stages[1], updates - 1, *range(0, updates, 997)}
    for update in sorted(corners):
        ours = learning_rate_factor(update + 1, updates, schedule)
        assert ours == pytest.approx(fairseq_tri_stage(update, stages), rel=1e-9), update


def test_w2v_bert_holds_the_values_of_its_notebook():
    args = parsed("ctc_w2v_bert_common_voice")
    assert (args.learning_rate, args.num_warmup_steps, args.num_train_epochs) == (5e-5, 500, 10)
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 32
    config = fine_tuned_config(args)
    assert {config.hidden_dropout, config.attention_dropout, config.feat_proj_dropout, config.layerdrop} == {0.0}
    assert config.mask_time_prob == config.mask_feature_prob == 0.0


def test_the_documented_decoding_has_the_weights_of_its_table():
    page = (ROOT / "docs" / "recipes.md").read_text()
    command = re.search(r"^    python run_ctc_decoding.py ((?:.*\\\n)*.*)", page, re.MULTILINE)[1].replace("\\\n", " ")
    args = run_ctc_decoding.parse_arguments(shlex.split(command, comments=True))
    assert args.model_name_or_path == "runs/ctc_base_10m"
    assert f"| LibriSpeech-960 | 10 min | {args.lm_weight:.2f} / {args.word_score:.2f} |" in page
    assert (args.beam_size, args.decoder) == (1500, "beam")
