"""How good a recogniser is: by the validation that chose it, and by the decodings that are named."""

import fnmatch
import math
import os
import re
from typing import Any

import xxhash
from huggingface_hub import EvalResult

from wavtrain import InputError
from wavtrain.durable_files import read_json
from wavtrain.hub.card_text import printable, shown, table

ASR = "automatic-speech-recognition"
KEPT = ("wer", "cer", "wer_95_percent_interval", "cer_95_percent_interval", "num_utterances", "decoder")


def read_scores(folder: str) -> dict[str, Any]:
    """What a card says of a decoding."""
    scores = read_json(os.path.join(folder, "scores.json"))
    if not isinstance(scores, dict) or not set(KEPT) <= scores.keys():
        raise InputError(f"{folder}: has no scores.json of run_ctc_decoding.py")
    return {name: scores[name] for name in KEPT}


def digest_of_weights(folder: str) -> str:
    """Tells the model in a directory from any other, as scores are those of one model."""
    digest = xxhash.xxh3_128()
    for name in sorted(fnmatch.filter(os.listdir(folder), "model*.safetensors")):
        with open(os.path.join(folder, name), "rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def model_scores(decodings: dict[str, Any], records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Those of the model that is served, by greedy decoding of the held-out split, and those of decodings."""
    def rank(record: dict[str, Any]) -> list[float]:
        return [math.inf if record[name] is None else record[name] for name in ("wer", "cer", "loss")]

    validated = [record for record in records if record["phase"] == "validation" and "wer" in record]
    found = {}
    if validated and (best := min(validated, key=rank))["wer"] is not None:
        found["validation"] = {**best, "decoder": f"greedy, of step {best['step']}"}
    return {**found, **decodings}


def eval_results(scores: dict[str, dict[str, Any]]) -> list[EvalResult]:
    """The same, for the model-index of a card; percentages, as speech has them there."""
    return [EvalResult(task_type=ASR, dataset_name=printable(label), dataset_type=re.sub(r"\W+", "-", label).lower(),
                       metric_type=kind, metric_name=f"{kind.upper()} %", metric_value=round(100 * found[kind], 2))
            for label, found in scores.items() for kind in ("wer", "cer")]


def score_table(scores: dict[str, dict[str, Any]]) -> list[str]:
    """The same, for people."""
    if not scores:
        return ["Nothing was held out for validation, so nothing is known."]
    rows = []
    for label, found in scores.items():
        intervals = [" to ".join(f"{100 * rate:.2f}" for rate in found.get(f"{kind}_95_percent_interval", ())) or "not known"
                     for kind in ("wer", "cer")]
        rows.append((shown(label), shown(found["decoder"]), f"{100 * found['wer']:.2f}", intervals[0],
                     f"{100 * found['cer']:.2f}", intervals[1]))
    return [*table(("speech", "decoder", "WER %", "95 % interval", "CER %", "95 % interval"), rows), "",
            "`validation` was held out of the training and chose the model, so its rates are a little too good."]
