"""The card of a model, README.md, written from what its run left in the output directory: no number comes from elsewhere.

`python -m wavtrain.hub.model_card RUN [SCORES ...]` writes it again, with the scores that decoding left in these folders.
"""

import json
import logging
import math
import os
import shlex
import struct
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from wavtrain import InputError, __version__
from wavtrain.arguments import run_as_script
from wavtrain.durable_files import read_json, read_json_lines, write_json
from wavtrain.hub.card_text import hours, languages_for_the_hub, printable, shown, signed, table, write_card
from wavtrain.hub.model_scores import ASR, digest_of_weights, eval_results, model_scores, read_scores, score_table
from wavtrain.hub.repository import is_hub_id, name_of
from wavtrain.reporting.recorded_runs import names_of
from wavtrain.speech.prepared_directory import PreparedSpeech

FACTS = "run.json"  # of a run, what arguments.yaml and metrics.jsonl do not say
PACKAGES = ("torch", "transformers", "accelerate", "datasets")
logger = logging.getLogger(__name__)
RECIPE = ("max_batch_duration_in_seconds", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
          "lr_scheduler_type", "num_warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "mask_time_prob",
          "mixed_precision", "seed")
USE = {
    True: ["from transformers import pipeline", "recognise = pipeline({task}, model={name})",
           'print(recognise(samples)["text"])'],
    False: ["from transformers import AutoFeatureExtractor, AutoModel",
            "extractor, model = AutoFeatureExtractor.from_pretrained({name}), AutoModel.from_pretrained({name})",
            'states = model(**extractor(samples, sampling_rate=16_000, return_tensors="pt")).last_hidden_state'],
}


def write_facts(output_dir: str, arguments: dict[str, Any], prepared: PreparedSpeech, num_processes: int) -> None:
    """At the start of a run, which hears this speech."""
    report, languages = prepared.report, filter(None, prepared.load("train").unique("language"))
    names = report.get("asked_for", {}).get("dataset_name", [])
    read_by_datasets = {source["corpus"] for source in report["sources"] if source["bytes"] is None}
    base = arguments.get("init_from") if "init_from" in arguments else arguments.get("model_name_or_path")
    write_json(os.path.join(output_dir, FACTS), {
        "speech": {"corpora": sorted({source["corpus"] for source in report["sources"]}), "languages": sorted(languages),
                   "splits": report["splits"], "rejected": report["rejected"]},
        "hub_datasets": [name for name in names if is_hub_id(name) and name_of(name) in read_by_datasets],
        "base_model": base if base and is_hub_id(base) else None,
        "num_processes": num_processes,
        "versions": {"wavtrain": __version__, **{name: version(name) for name in PACKAGES},
                     "python": ".".join(map(str, sys.version_info[:3]))},
        "repository": None, "scores": _scores_before(output_dir)}, indent=1)


def _scores_before(output_dir: str) -> dict[str, Any]:
    try:
        facts = read_json(os.path.join(output_dir, FACTS))
    except ValueError:  # damaged: it is written anew
        facts = None
    return facts.get("scores", {}) if isinstance(facts, dict) else {}


def write_model_card(output_dir: str, repository: str | None = None) -> None:
    """README.md, unless a person has edited it; `repository` is where it goes. What goes wrong here does not stop a run."""
    try:
        facts = {**_facts(output_dir), "repository": repository}
        write_json(os.path.join(output_dir, FACTS), facts, indent=1)
        write_card(output_dir, model_card(output_dir, facts))
    except Exception as error:
        logger.warning("%s/README.md is not written: %s: %s", output_dir, type(error).__name__, error)


def _facts(output_dir: str) -> dict[str, Any]:
    facts = read_json(os.path.join(output_dir, FACTS))
    if facts is None:
        raise InputError(f"{output_dir}: has no {FACTS}, so it is no --output_dir of a training script")
    return facts


def model_card(output_dir: str, facts: dict[str, Any]) -> str:
    """The text of it."""
    with open(os.path.join(output_dir, "arguments.yaml"), encoding="utf-8") as file:
        arguments = yaml.safe_load(file)
    records = read_json_lines(os.path.join(output_dir, "metrics.jsonl"))
    is_recogniser = "vocabulary" in arguments  # a flag of run_ctc_finetuning.py
    where = facts["repository"] or output_dir
    weights = digest_of_weights(output_dir) if facts["scores"] else None
    scores = model_scores({label: each for label, each in facts["scores"].items() if each["weights"] == weights}, records)
    metadata = ModelCardData(
        library_name="transformers", pipeline_tag=ASR if is_recogniser else "feature-extraction",
        tags=["speech", "wavtrain"], license=arguments.get("license"), base_model=facts["base_model"],
        language=languages_for_the_hub(facts["speech"]["languages"]), datasets=facts["hub_datasets"] or None,
        metrics=["wer", "cer"] if scores else None, model_name=printable(name_of(where)) if scores else None,
        eval_results=eval_results(scores) or None)
    use = [line.format(name=json.dumps(where), task=json.dumps(ASR)) for line in USE[is_recogniser]]
    has_curves = os.path.exists(os.path.join(output_dir, "training_curves.png"))
    lines = [f"# {shown(name_of(where))}", "", _what_it_is(output_dir, facts, is_recogniser), "",
             "## How to use it", "", "```python", *use, "```", "", "`samples` are float32, one channel, 16 kHz.", "",
             "## How good it is", "", *(score_table(scores) if is_recogniser else _measures(records)), "",
             *(["![Curves of the training](training_curves.png)", ""] if has_curves else []),
             "## What it heard", "", *_speech(facts["speech"]), "",
             "## How it was made", "", *_recipe(arguments, facts, records, is_recogniser)]
    return signed(metadata, lines)


def _what_it_is(output_dir: str, facts: dict[str, Any], is_recogniser: bool) -> str:
    config, weights = read_json(os.path.join(output_dir, "config.json")) or {}, _num_weights(output_dir)
    kind = shown(config.get("model_type", "its config is not written yet"))
    size = f", {weights:,} weights" if weights else ""
    speech = f"{hours(facts['speech']['splits']['train']['hours'])} hours of speech"
    base = f" It began from {shown(facts['base_model'])}." if facts["base_model"] else ""
    if is_recogniser:
        return f"A speech recogniser ({kind}{size}), fine-tuned with CTC on {speech} with transcripts.{base}"
    return f"A speech encoder ({kind}{size}), pretrained on {speech}, without transcripts.{base}"


def _num_weights(output_dir: str) -> int:
    """Of the model in the directory, from the heads of its files."""
    total = 0
    for name in os.listdir(output_dir):
        if name.startswith("model") and name.endswith(".safetensors"):
            with open(os.path.join(output_dir, name), "rb") as file:
                head = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
            total += sum(math.prod(each["shape"]) for key, each in head.items() if key != "__metadata__")
    return total


def _measures(records: list[dict[str, Any]]) -> list[str]:
    """Of the last validation."""
    names = {"loss": "loss, nats per masked frame", "contrastive_accuracy": "contrastive accuracy, strict",
             "code_perplexity": "code perplexity"}
    last = next((record for record in reversed(records) if record["phase"] == "validation"), None)
    if last is None:
        return ["Nothing was held out for validation, so nothing is known."]
    return table((f"held-out speech, step {last['step']}", ""),
                 [(name, f"{last[key]:.4g}") for key, name in names.items() if last.get(key) is not None])


def _speech(speech: dict[str, Any]) -> list[str]:
    lines = table(("split", "clips", "hours"), [(name, f"{total['clips']:,}", hours(total["hours"]))
                                                for name, total in speech["splits"].items()])
    lines += ["", f"- Corpora: {', '.join(map(shown, speech['corpora']))}. Their licences are theirs, and are not known here."]
    if speech["languages"]:
        lines.append(f"- Languages: {', '.join(map(shown, speech['languages']))}")
    if speech["rejected"]:
        left_out = (f"{shown(reason)} {count['clips']:,}" for reason, count in speech["rejected"].items())
        lines.append(f"- Left out, by reason: {', '.join(left_out)} clips")
    return lines


def _recipe(arguments: dict[str, Any], facts: dict[str, Any], records: list[dict[str, Any]], is_recogniser: bool) -> list[str]:
    script = "run_ctc_finetuning.py" if is_recogniser else "run_wav2vec2_pretraining_no_trainer.py"
    last = next((record for record in reversed(records) if record["phase"] == "train"), None)
    done = [f"{last['step']:,} updates, {hours(last['audio_hours'])} hours of speech heard", ""] if last else []
    given = [(shown(f"--{name}"), shown(arguments[name])) for name in RECIPE if arguments.get(name) is not None]
    launch = f"accelerate launch --num_processes {facts['num_processes']}" if facts["num_processes"] > 1 else "python"
    return [*done, *table(("flag", "value"), given), "",
            "The command, with the arguments.yaml that lies beside this card:", "",
            f"    {launch} {script} --config arguments.yaml", "",
            f"Made with {', '.join(f'{name} {shown(number)}' for name, number in facts['versions'].items())}."]


def main(words: Sequence[str]) -> str:
    """The first word is a run, the others are folders of scores."""
    if not words or any(word.startswith("-") for word in words):
        raise InputError("name the --output_dir of a run: python -m wavtrain.hub.model_card RUN [SCORES ...]")
    facts = _facts(words[0])
    weights = digest_of_weights(words[0])
    facts["scores"] |= {name: {**read_scores(folder), "weights": weights}
                        for name, folder in zip(names_of(words[1:]), words[1:], strict=True)}
    write_json(os.path.join(words[0], FACTS), facts, indent=1)
    if not write_card(words[0], model_card(words[0], facts)):
        raise InputError(f"{words[0]}/README.md was edited by hand and is left as it is: remove it to have it written again")
    card = f"{words[0]}/README.md"
    if facts["repository"] is None:
        return card
    return f"{card}; on the Hub with\n  {shlex.join(['hf', 'upload', facts['repository'], card, 'README.md'])}"


if __name__ == "__main__":
    run_as_script(lambda: print(main(sys.argv[1:])))
