"""How good a recogniser is: by the validation that chose it, and by decodings, each of these very weights."""

import fnmatch
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import xxhash
from huggingface_hub import EvalResult, try_to_load_from_cache

from wavtrain import InputError
from wavtrain.durable_files import read_json
from wavtrain.hub.card_text import printable, shown, table
from wavtrain.hub.named_speech import named_speech, speech_text, without_path
from wavtrain.recognition.transcripts import TextRules

ASR = "automatic-speech-recognition"
OF_A_DECODING = ("model", "weights", "speech", "decoding")  # which scores.json has beside the scores
KEPT = (*OF_A_DECODING, "wer", "cer", "wer_95_percent_interval", "cer_95_percent_interval", "interval_resamples",
        "num_utterances", "decoder")
NO_DIGEST = "no safetensors"


def of_a_decoding(model: str, cache_dir: str | None, report: dict[str, Any], part: str,
                  decoding: Mapping[str, Any], rules: TextRules) -> dict[str, Any]:
    """What was decoded, by which model, and how, without the places of this machine; `report` is preparation.json."""
    plain = {name: without_path(value) if name.endswith(("_path", "_lm")) and value else value
             for name, value in decoding.items()}
    plain = {name: None if isinstance(value, float) and math.isinf(value) else value for name, value in plain.items()}
    plain["text"] = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(rules).items()}
    return {"model": without_path(model), "weights": digest_of_weights(model, cache_dir),
            "speech": named_speech(report, part), "decoding": plain}


def read_scores(folder: str) -> dict[str, Any]:
    """What a card says of a decoding."""
    try:
        scores = read_json(os.path.join(folder, "scores.json")) if os.path.isdir(folder) else None
    except ValueError:
        scores = None
    if not isinstance(scores, dict) or not {"wer", "cer"} <= scores.keys():
        raise InputError(f"{folder}: has no scores.json of run_ctc_decoding.py")
    if not set(KEPT) <= scores.keys():
        raise InputError(f"{folder}: its scores.json, of an older version, does not say what was decoded: decode again")
    speakers = scores["per_speaker"].values()
    return {**{name: scores[name] for name in KEPT}, "num_speakers": len(speakers),
            "has_unknown_speakers": sum(each["utterances"] for each in speakers) < scores["num_utterances"]}


def digest_of_weights(model: str, cache_dir: str | None = None) -> str:
    """Of a folder, or of a Hub id that has been loaded: tells a model from any other, as scores are those of one model."""
    folder, digest = model, xxhash.xxh3_128()
    if not os.path.isdir(model):
        folder = os.path.dirname(str(try_to_load_from_cache(model, "config.json", cache_dir=cache_dir) or ""))
    names = sorted(fnmatch.filter(os.listdir(folder), "model*.safetensors")) if os.path.isdir(folder) else []
    for name in names:
        with open(os.path.join(folder, name), "rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest() if names else NO_DIGEST


def with_score(scores: list[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """It takes the place of one on the same speech, decoded in the same way."""
    return [*(each for each in scores if (each["speech"], each["decoding"]) != (new["speech"], new["decoding"])), new]


def validation_score(records: list[dict[str, Any]], parts: dict[str, Any], arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """That of the model that is served, by greedy decoding of the held-out speech."""
    def rank(record: dict[str, Any]) -> list[float]:
        return [math.inf if record[name] is None else record[name] for name in ("wer", "cer", "loss")]

    validated = [record for record in records if record["phase"] == "validation" and "wer" in record]
    if not validated or (best := min(validated, key=rank))["wer"] is None:
        return []
    heard = parts["validation"]
    return [{"wer": best["wer"], "cer": best["cer"], "speech": heard, "num_utterances": heard["clips"], "step": best["step"],
             "num_speakers": heard["num_speakers"], "has_unknown_speakers": heard["has_unknown_speakers"],
             "decoder": f"greedy, at step {best['step']}", "decoding": arguments}]


def eval_results(scores: list[dict[str, Any]]) -> list[EvalResult]:
    """For the model-index of a card; percentages, as speech has them there."""
    found = []
    for each in scores:
        corpora = each["speech"]["corpora"]
        name, config, split = (" + ".join(dict.fromkeys(corpus[key] for corpus in corpora if corpus[key])) or None
                               for key in ("name", "config", "split"))
        is_of_hub = len({corpus["name"] for corpus in corpora}) == 1 and corpora[0]["is_on_hub"]
        share = f" ({each['speech']['share']})" if each["speech"]["share"] else ""
        found += [EvalResult(
            task_type=ASR, dataset_name=printable(name + share), metric_type=kind, metric_value=round(100 * each[kind], 2),
            dataset_type=name if is_of_hub else re.sub(r"\W+", "-", name + share).strip("-").lower() or "speech",
            dataset_config=config and printable(config), dataset_split=split and printable(split),
            metric_name=printable(f"{kind.upper()} %, {each['decoder']}")) for kind in ("wer", "cer")]
    return found


def score_lines(scores: list[dict[str, Any]]) -> list[str]:
    """The same, for people, and what the numbers are."""
    if not scores:
        return ["Nothing was held out for validation, so nothing is known."]
    rows = []
    for each in scores:
        intervals = [" to ".join(f"{100 * rate:.2f}" for rate in each.get(f"{kind}_95_percent_interval", ())) or "not known"
                     for kind in ("wer", "cer")]
        wer, cer = (f"{100 * each[kind]:.2f}" for kind in ("wer", "cer"))
        rows.append((shown(speech_text(each["speech"])), f"{each['num_utterances']:,}", speakers_text(each),
                     shown(each["decoder"]), wer, intervals[0], cer, intervals[1]))
    lines = [*table(("speech", "utterances", "speakers", "decoder", "WER %", "95 % interval", "CER %", "95 % interval"), rows),
             ""]
    if any("step" in each for each in scores):
        lines.append("- The decoding at a step is the validation that chose the model, so its rates are a little too good.")
    if drawn := {each["interval_resamples"] for each in scores if "interval_resamples" in each}:
        lines.append(f"- The intervals are bootstraps: the speakers were drawn anew {max(drawn):,} times, with replacement "
                     "(the utterances, where there is but one speaker or not all are known).")
    texts: dict[str, list[str]] = {}
    for each in scores:
        texts.setdefault(_rules(each["decoding"].get("text", each["decoding"])), []).append(speech_text(each["speech"]))
    for rules, speech in texts.items():
        of_what = f"Transcripts of {'; '.join(map(shown, dict.fromkeys(speech)))}" if len(texts) > 1 else "Transcripts"
        lines.append(f"- {of_what} are compared {rules}.")
    return lines


def speakers_text(counts: dict[str, Any]) -> str:
    """How many there are, as far as that is known."""
    known = f"{counts['num_speakers']:,}"
    return known if not counts["has_unknown_speakers"] else f"{known} known" if counts["num_speakers"] else "not known"


def _rules(given: dict[str, Any]) -> str:
    """What is other than by default."""
    plain = vars(TextRules())
    other = {name: value for name in plain if (value := given.get(name)) and value != plain[name]}
    words = [f"--{name}" if value is True else f"--{name} {' '.join(value) if isinstance(value, list) else value}"
             for name, value in other.items()]
    return f"after {shown(' '.join(words))}" if words else "as they are"
