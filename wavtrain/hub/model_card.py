"""The card of a model, README.md, written from what its run left in the output directory: no number comes from elsewhere.

`python -m wavtrain.hub.model_card RUN [SCORES ...]` writes it again, with the scores that decoding left in these folders.
"""

import json
import logging
import math
import os
import shlex
import struct
from collections.abc import Sequence
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from wavtrain import InputError
from wavtrain.arguments import Parser, run_as_script
from wavtrain.durable_files import read_json, read_json_lines, write_json
from wavtrain.hub.card_recipe import recipe_lines
from wavtrain.hub.card_text import CARD, hours, languages_for_the_hub, printable, shown, signed, table, write_card
from wavtrain.hub.hub_flags import add_card_arguments
from wavtrain.hub.model_scores import (
    ASR,
    digest_of_weights,
    eval_results,
    read_scores,
    score_lines,
    speakers_text,
    validation_score,
    with_score,
)
from wavtrain.hub.named_speech import speech_text
from wavtrain.hub.repository import name_of
from wavtrain.hub.run_facts import FACTS, read_facts
from wavtrain.reporting.recorded_runs import references

logger = logging.getLogger(__name__)
WHAT = {True: ("recogniser", "fine-tuned with CTC on {} hours of transcribed speech"),
        False: ("encoder", "pretrained on {} hours of speech, without transcripts")}
USE = {
    True: ["from transformers import pipeline", "recognise = pipeline({task}, model={name})",
           'print(recognise(samples)["text"])'],
    False: ["from transformers import AutoFeatureExtractor, AutoModel",
            "extractor, model = AutoFeatureExtractor.from_pretrained({name}), AutoModel.from_pretrained({name})",
            'states = model(**extractor(samples, sampling_rate=16_000, return_tensors="pt")).last_hidden_state'],
}


def write_model_card(output_dir: str, repository: str | None = None) -> None:
    """README.md, unless a person has edited it; `repository` is where it goes. What goes wrong here does not stop a run."""
    try:
        facts = _with_own_scores(output_dir, {**read_facts(output_dir), "repository": repository})
        write_json(os.path.join(output_dir, FACTS), facts, indent=1)
        write_card(output_dir, model_card(output_dir, facts))
    except Exception as error:
        logger.warning("%s/README.md is not written: %s: %s", output_dir, type(error).__name__, error)


def _with_own_scores(output_dir: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Without those of other weights than lie there now, which is said."""
    weights, own = digest_of_weights(output_dir) if facts["scores"] else None, []
    for each in facts["scores"]:
        if each["weights"] == weights:
            own.append(each)
        else:
            logger.warning("note: %s/README.md leaves out the scores on %s (%s): they are of %s, which has other weights",
                           output_dir, speech_text(each["speech"]), each["decoder"], each["model"])
    return {**facts, "scores": own}


def model_card(output_dir: str, facts: dict[str, Any]) -> str:
    """The text of it."""
    with open(os.path.join(output_dir, "arguments.yaml"), encoding="utf-8") as file:
        arguments = yaml.safe_load(file)
    records, config = read_json_lines(os.path.join(output_dir, "metrics.jsonl")), _config(output_dir)
    last = next((record for record in reversed(records) if record["phase"] == "train"), None)
    is_recogniser = "vocabulary" in arguments  # a flag of run_ctc_finetuning.py
    where = facts["repository"] or output_dir
    validated = validation_score(records, facts["parts"], arguments)
    scores = [*validated, *facts["scores"]]
    of_origins = [name for origin in facts["origins"] for name in origin["hub_datasets"]]
    metadata = ModelCardData(
        library_name="transformers", pipeline_tag=ASR if is_recogniser else "feature-extraction",
        tags=["speech", "wavtrain"], license=arguments.get("license"), base_model=facts["base_model"],
        language=languages_for_the_hub(facts["languages"]), datasets=sorted({*facts["hub_datasets"], *of_origins}) or None,
        metrics=["wer", "cer"] if scores else None, model_name=printable(name_of(where)) if scores else None,
        eval_results=eval_results(scores) or None)
    use = [line.format(name=json.dumps(where), task=json.dumps(ASR)) for line in USE[is_recogniser]]
    has_curves = os.path.exists(os.path.join(output_dir, "training_curves.png"))
    lines = [f"# {shown(name_of(where))}", "", _what_it_is(output_dir, config, facts, last, is_recogniser),
             *(f"Its weights are those of step {each['step']:,}." for each in validated
               if last is None or each["step"] != last["step"]), "",
             "## How to use it", "", "```python", *use, "```", "", "`samples` are float32, one channel, 16 kHz.", "",
             "## How good it is", "",
             *(score_lines(scores) if is_recogniser else _measures(records, {**config, **arguments})), "",
             *(["![Curves of the training](training_curves.png)", ""] if has_curves else []),
             "## What it heard", "", *_speech(facts, is_recogniser), "",
             "## How it was made", "", *recipe_lines(arguments, facts, config, last, where, is_recogniser)]
    return signed(metadata, lines)


def _config(output_dir: str) -> dict[str, Any]:
    return read_json(os.path.join(output_dir, "config.json")) or {}


def _what_it_is(output_dir: str, config: dict[str, Any], facts: dict[str, Any], last: dict[str, Any] | None,
                is_recogniser: bool) -> str:
    weights, of_all = _num_weights(output_dir), facts["parts"]["train"]["hours"]
    kind = shown(config.get("model_type", "its config is not written yet"))
    size = f", {weights:,} weights" if weights else ""
    what, how = WHAT[is_recogniser]
    heard = ""
    if last:
        number = last["audio_hours"]
        heard = f" It heard {hours(number)} hours in {last['step']:,} updates, {hours(number / of_all)} times all of it."
    base = f" It began from {shown(facts['origins'][0]['name'])}." if facts["origins"] else " It began from random weights."
    return f"A speech {what} ({kind}{size}), {how.format(hours(of_all))}.{heard}{base}"


def _num_weights(output_dir: str) -> int:
    """Of the model in the directory, from the heads of its files."""
    total = 0
    for name in os.listdir(output_dir):
        if name.startswith("model") and name.endswith(".safetensors"):
            with open(os.path.join(output_dir, name), "rb") as file:
                head = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
            total += sum(math.prod(each["shape"]) for key, each in head.items() if key != "__metadata__")
    return total


def _measures(records: list[dict[str, Any]], settings: dict[str, Any]) -> list[str]:
    """Of the last validation."""
    guessed = references(settings)
    names = {"loss": "loss, nats per masked frame",
             "contrastive_accuracy": f"contrastive accuracy, strict (chance {guessed['contrastive_accuracy']:.3g})",
             "code_perplexity": f"code perplexity, of {guessed['code_perplexity']:,}"}
    last = next((record for record in reversed(records) if record["phase"] == "validation"), None)
    if last is None:
        return ["Nothing was held out for validation, so nothing is known."]
    return table((f"held-out speech, step {last['step']}", ""),
                 [(name, f"{last[key]:.4g}") for key, name in names.items() if last.get(key) is not None])


def _speech(facts: dict[str, Any], is_recogniser: bool) -> list[str]:
    lines = table(("part", "corpora", "clips", "hours", "speakers"), [
        (part, shown(speech_text(of)), f"{of['clips']:,}", hours(of["hours"]), speakers_text(of))
        for part, of in facts["parts"].items()])
    lines += ["", "- The corpora have licences of their own, which are not known here."]
    if facts["languages"]:
        lines.append(f"- Languages: {', '.join(map(shown, facts['languages']))}")
    if facts["rejected"]:
        left_out = (f"{shown(reason)} {count['clips']:,}" for reason, count in facts["rejected"].items())
        lines.append(f"- Left out, by reason: {', '.join(left_out)} clips")
    unfit = {part: of["num_prepared"] - of["clips"] for part, of in facts["parts"].items()}
    why = "their transcripts are missing or do not fit" if is_recogniser else "they are shorter than a mask"
    lines += [f"- Left out of {part}, as {why}: {number:,} clips"
              for part, number in unfit.items() if number]
    return [*lines, *map(_origin, facts["origins"])]


def _origin(origin: dict[str, Any]) -> str:
    name = shown(origin["name"])
    if not origin["speech"]:
        return f"- What {name} was trained on is not known here: neither a {FACTS} nor a card of it says so."
    size = f", {hours(origin['hours'])} hours" if origin["hours"] else ""
    return f"- Before that, {name} was trained on {shown(origin['speech'])}{size} (says {origin['is_told_by']})."


def main(words: Sequence[str] | None = None) -> str:
    """What is on the card already stays there, as long as it is of the same weights."""
    parser = Parser(prog="python -m wavtrain.hub.model_card", description=__doc__, allow_abbrev=False)
    add_card_arguments(parser)
    given = parser.parse_intermixed_args(words)
    facts = read_facts(given.run)
    facts["scores"] = [] if given.forget_scores else facts["scores"]
    for folder in given.scores:
        facts["scores"] = with_score(facts["scores"], read_scores(folder))
    facts = _with_own_scores(given.run, facts)
    card = os.path.join(given.run, CARD)
    if not write_card(given.run, model_card(given.run, facts)):
        raise InputError(f"{card} was edited by hand and is left as it is: remove it to have it written again")
    write_json(os.path.join(given.run, FACTS), facts, indent=1)
    if facts["repository"] is None:
        return card
    both = [f"--include={name}" for name in (CARD, FACTS)]  # a run that is resumed from there writes the card anew
    return f"{card}; on the Hub with\n  {shlex.join(['hf', 'upload', facts['repository'], given.run, '.', *both])}"


if __name__ == "__main__":
    run_as_script(lambda: print(main()))
