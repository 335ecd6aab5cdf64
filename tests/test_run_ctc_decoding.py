"""The decoding script: transformers' own text, any layout alike, honest scores, and one line for what is wrong."""

import csv
import json
import os
import re
import runpy
import signal
import sys

import jiwer
import numpy as np
import pytest
import soundfile
import torch
from conftest import sound
from test_rescoring import write_tokenizer
from training_runs import codes, refusal, start, wait_until
from transformers import (
    AutoModelForCTC,
    AutoProcessor,
    GPT2Config,
    GPT2LMHeadModel,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    Wav2Vec2Processor,
)

import run_ctc_decoding as decoding
import run_ctc_finetuning as finetuning
import run_preprocessing as preprocessing
from wavtrain import InputError
from wavtrain.hub.model_scores import digest_of_weights
from wavtrain.recognition import beam_decoding, ngrams, recognisers
from wavtrain.recognition.transcripts import TextRules
from wavtrain.recognition.vocabularies import build_vocabulary
from wavtrain.run_directory import LOCK, held

# A language of tones: each letter has its own, silence is the blank, so that a recogniser learns it in seconds.

pytestmark = pytest.mark.usefixtures("quick_runs")
WORDS = ("abba", "bad", "cab", "dada", "face", "fade")
LETTERS = "|abcdef"
RATE, TONE, GAP = 16_000, 1600, 960
VOCABULARY = build_vocabulary(WORDS, "letters")


def spoken(text: str, noise: float, seed: int) -> tuple[np.ndarray, list[str]]:
    """The sound of a text, and which letter there is at each sample."""
    generator = np.random.default_rng(seed)
    letters = text.replace(" ", "|")
    tone = np.arange(TONE) / RATE
    silence = np.zeros(GAP)
    parts = [silence]
    for letter in letters:
        parts += [np.sin(2 * np.pi * 300 * 1.5 ** LETTERS.index(letter) * tone) * 0.3, silence]
    samples = np.concatenate(parts)
    labels = [""] * GAP + [label for letter in letters for label in [letter] * TONE + [""] * GAP]
    return (samples + noise * generator.standard_normal(len(samples))).astype(np.float32), labels


def sentence(generator: np.random.Generator, most: int = 5) -> str:
    """Words of which each likes to be followed by the next of the list."""
    place, words = int(generator.integers(len(WORDS))), []
    for _ in range(generator.integers(2, most + 1)):
        words.append(WORDS[place])
        place = (place + 1 if generator.random() < 0.9 else int(generator.integers(len(WORDS)))) % len(WORDS)
    return " ".join(words)


def write_split(folder, number: int, noise: float, seed: int, text=lambda row, said: said) -> list[str]:
    """An audiofolder split with speakers."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    texts = [sentence(generator) for _ in range(number)]
    with open(folder / "metadata.csv", "w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["file_name", "text", "speaker"])
        for row, said in enumerate(texts):
            soundfile.write(folder / f"{row:02d}.flac", spoken(said, noise, 1000 * seed + row)[0], RATE)
            writer.writerow([f"{row:02d}.flac", text(row, said), f"s{row % 3}"])
    return texts


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory):
    """Trained for seconds, on labels of frames: it hears the tones of a quiet recording without a fault."""
    folder = tmp_path_factory.mktemp("recogniser")
    extractor = SeamlessM4TFeatureExtractor()
    Wav2Vec2BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                       conv_depthwise_kernel_size=5, mask_time_prob=0.0, layerdrop=0.0).save_pretrained(folder)
    extractor.save_pretrained(folder)
    torch.manual_seed(0)
    config = recognisers.load_config(str(folder), "--config_name", VOCABULARY, {})
    model = recognisers.build(config, VOCABULARY)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = np.random.default_rng(0)
    for update in range(120):
        wave, labels = spoken(sentence(generator, 6), generator.choice([0.002, 0.1, 0.3]), update)
        features = recognisers.features_of(wave, extractor)
        ids = np.array([VOCABULARY.blank if not label else VOCABULARY.tokens.index(label) for label in labels])
        targets = torch.from_numpy(ids[np.arange(len(features)) * 320 + 280])
        loss = torch.nn.functional.nll_loss(model(torch.from_numpy(features)[None])["log_probs"][0], targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    recognisers.describe(extractor, VOCABULARY, TextRules(text_case="lower"), None, model, str(folder))
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Noisy: 11 clips to test on, in capitals, and 12 to validate on."""
    folder = tmp_path_factory.mktemp("corpus")
    write_split(folder / "test", 11, 0.7, seed=1, text=lambda row, said: said.upper())
    write_split(folder / "validation", 12, 0.7, seed=2)
    return folder


@pytest.fixture(scope="module")
def arpa(tmp_path_factory):
    generator = np.random.default_rng(7)
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    ngrams.write_arpa(str(path), ngrams.estimate([sentence(generator).split() for _ in range(300)], 2))
    return path


def command(recogniser, corpus, output_dir, *more, split: str | None = "test") -> list[str]:
    argv = ["--model_name_or_path", recogniser, "--dataset_name", corpus, "--output_dir", output_dir,
            "--preprocessing_num_workers", 1, "--dataloader_num_workers", 0, *more]
    return list(map(str, argv + (["--dataset_split_names", split] if split else [])))


def hypotheses(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "hypotheses.jsonl").read_text().splitlines()]


# The same text as transformers

PUBLISHED = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
SHAPES = {  # two layers of twelve and of twenty-four
    "base-960h": ({"feat_extract_norm": "group"}, {"do_normalize": False, "return_attention_mask": False}),
    "large-960h-lv60-self": ({"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True,
                              "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096},
                             {"do_normalize": True, "return_attention_mask": True})}


def write_published(folder, kind: str) -> str:
    """Random weights in the shape of a published checkpoint, its letters spread out."""
    folder.mkdir()
    (folder / "letters.json").write_text(json.dumps({token: place for place, token in enumerate(PUBLISHED)}))
    settings, hears = SHAPES[kind]
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "letters.json"), do_lower_case=False)
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(**hears), tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=32, num_hidden_layers=2, initializer_range=0.1, **settings))
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", SHAPES)
def test_greedy_text_is_that_of_transformers(kind, tmp_path):
    """Ours in padded batches of eight, theirs one clip after the other."""
    name = write_published(tmp_path / "model", kind)
    (tmp_path / "audio").mkdir()
    for number, seconds in enumerate((0.3, 1.1, 0.7, 0.05, 0.9, 0.5, 0.62, 1.3, 0.41)):
        soundfile.write(tmp_path / "audio" / f"{number}.flac", sound(seconds, number), RATE)
    decoding.main(command(name, tmp_path / "audio", tmp_path / "out", split=None))
    processor, model = AutoProcessor.from_pretrained(name), AutoModelForCTC.from_pretrained(name).eval()
    found = hypotheses(tmp_path / "out")
    assert len(found) == 9
    for each in found:
        wave, _ = soundfile.read(tmp_path / "audio" / each["utterance_id"], dtype="float32")
        with torch.inference_mode():
            logits = model(**processor(wave, sampling_rate=RATE, return_tensors="pt")).logits
        assert [each["text"]] == processor.batch_decode(logits.argmax(-1))
    assert sum(len(each["text"]) for each in found) > 60
    assert len(set("".join(each["text"] for each in found))) > 5


# Any layout alike


@pytest.fixture(scope="module")
def at_once(recogniser, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("at_once")
    return folder, decoding.main(command(recogniser, corpus, folder, "--cache_dir", tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("flags", [("--per_device_eval_batch_size", 1), ("--per_device_eval_batch_size", 3,
                                                                         "--dataloader_num_workers", 2)], ids=str)
def test_batches_and_loaders_change_nothing(flags, recogniser, corpus, at_once, tmp_path):
    folder, scores = at_once
    assert decoding.main(command(recogniser, corpus, tmp_path, *flags)) == scores
    for one, other in zip(hypotheses(tmp_path), hypotheses(folder), strict=True):
        assert (one["utterance_id"], one["text"]) == (other["utterance_id"], other["text"])
        assert [word["start"] for word in one["words"]] == [word["start"] for word in other["words"]]
        assert one["score"] == pytest.approx(other["score"], abs=1e-3)


def test_a_folder_is_one_run_s_at_a_time(recogniser, corpus, at_once, tmp_path):
    message = f"--output_dir {tmp_path}: another run is at work in it .process {os.getpid()} on "
    with held(str(tmp_path)), pytest.raises(InputError, match=message):
        decoding.main(command(recogniser, corpus, tmp_path))
    assert decoding.main(command(recogniser, corpus, tmp_path)) == at_once[1]
    with held(str(tmp_path)):
        pass


def test_two_processes_write_the_same_files(recogniser, corpus, arpa, tmp_path):
    """Five batches of eleven clips; tuned on what both have heard."""
    flags = ["--per_device_eval_batch_size", 2, "--validation_split_names", "validation", "--lm_path", arpa, "--tune", 2]
    two = start(decoding, command(recogniser, corpus, tmp_path / "two", *flags), 2, SAID=str(tmp_path / "said"))
    assert codes(two) == [0, 0]
    assert (tmp_path / "said").read_text().count("tuned on 12 utterances") == 1
    decoding.main(command(recogniser, corpus, tmp_path / "one", *flags))
    for name in ("hypotheses.jsonl", "scores.json", "hypothesis.trn", "reference.trn"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


@pytest.fixture
def heard(recogniser, tmp_path):
    """What is said in a quiet recording of so many sentences, and what is heard of it."""
    def hear(number: int, *flags) -> tuple[str, dict]:
        generator = np.random.default_rng(3)
        said = " ".join(sentence(generator) for _ in range(number))
        soundfile.write(tmp_path / "long.flac", spoken(said, 0.002, 0)[0], RATE)
        decoding.main(command(recogniser, tmp_path / "long.flac", tmp_path / "out", *flags, split=None))
        (found,) = hypotheses(tmp_path / "out")
        return said, found
    return hear


WINDOWS = ("--window_in_seconds", 7, "--window_overlap_in_seconds", 2, "--per_device_eval_batch_size", 4)


def test_windows_lose_and_double_nothing(heard):
    """In more than three minutes every word is heard, when it is said."""
    said, found = heard(70, *WINDOWS)
    assert found["duration_in_seconds"] > 180
    assert found["text"] == said
    begins = np.cumsum([0, *(len(word) + 1 for word in said.split())])[:-1] * (TONE + GAP) / RATE + GAP / RATE
    assert [word["start"] for word in found["words"]] == pytest.approx(begins.tolist(), abs=0.061)


def test_windows_hear_what_is_heard_at_once(heard):
    _, whole = heard(16, "--window_in_seconds", 100)
    _, windowed = heard(16, *WINDOWS)
    assert whole["duration_in_seconds"] > 35
    assert windowed["text"] == whole["text"]
    starts, wanted = ([word["start"] for word in each["words"]] for each in (windowed, whole))
    assert starts == pytest.approx(wanted, abs=0.021)


# What is decoded


def test_audio_files_as_they_are(recogniser, tmp_path, capsys):
    wave, _ = spoken("bad cab", 0.002, 0)
    for name in ("a.wav", "b.flac", "c.mp3", "d.ogg"):
        soundfile.write(tmp_path / name, wave, RATE)
    (tmp_path / "broken.wav").write_bytes(b"RIFF and no more")
    corpus = [tmp_path / name for name in ("a.wav", "b.flac", "c.mp3", "d.ogg", "broken.wav")]
    argv = command(recogniser, corpus[0], tmp_path / "out", "--dataset_name", *corpus, split=None)
    assert decoding.main(argv) == {"num_utterances": 4}
    told = capsys.readouterr().out
    assert "left out             1 clips  unreadable" in told
    with open(re.search("reason: (.*)", told)[1]) as rejected:
        assert [os.path.basename(json.loads(line)["source"]) for line in rejected] == ["broken.wav"]
    assert [(os.path.basename(each["utterance_id"]), each["text"]) for each in hypotheses(tmp_path / "out")] == [
        (name, "bad cab") for name in ("a.wav", "b.flac", "c.mp3", "d.ogg")]


def test_a_prepared_directory_and_its_parts(recogniser, corpus, at_once, tmp_path):
    preprocessing.main(list(map(str, [
        "--dataset_name", corpus, "--dataset_split_names", "test", "--validation_split_names", "validation",
        "--output_dir", tmp_path / "prepared", "--preprocessing_num_workers", 1])))
    argv = command(recogniser, tmp_path / "prepared", tmp_path / "out", split=None)
    assert decoding.main(argv) == at_once[1]
    assert decoding.main([*argv, "--prepared_split", "validation"])["num_utterances"] == 12
    with pytest.raises(InputError, match=r"--max_duration_in_seconds 5\.0: .* is prepared already, with 40\.0"):
        decoding.main([*argv, "--max_duration_in_seconds", "5"])
    with pytest.raises(InputError, match="--text_column_name has no effect"):
        decoding.main([*argv, "--text_column_name", "text"])


def test_without_transcripts_nothing_is_scored(recogniser, corpus, tmp_path, capsys):
    """And no scores of an earlier decoding are left."""
    output_dir = tmp_path / "out"
    decoding.main(command(recogniser, corpus, output_dir))
    assert sorted(os.listdir(output_dir)) == [LOCK, "hypotheses.jsonl", "hypothesis.trn", "reference.trn", "scores.json"]
    assert decoding.main(command(recogniser, corpus / "test" / "00.flac", output_dir, split=None)) == {"num_utterances": 1}
    assert sorted(os.listdir(output_dir)) == [LOCK, "hypotheses.jsonl"]
    assert "note: there are no transcripts to compare with" in capsys.readouterr().out


def test_references_that_say_nothing_are_counted(recogniser, tmp_path):
    """No transcript, nothing but what is removed, and digits where these are not to be compared."""
    said = write_split(tmp_path / "corpus" / "test", 5, 0.002, seed=5,
                       text=lambda row, said: ("", "?!", "7 cab", said, said)[row])
    argv = command(recogniser, tmp_path / "corpus", tmp_path / "out", "--remove_punctuation")
    scores = decoding.main(argv)
    assert (scores["num_utterances"], scores["num_without_reference"]) == (3, 2)
    assert scores["wer"] > 0
    scores = decoding.main([*argv, "--digits", "reject"])
    assert (scores["num_utterances"], scores["num_without_reference"], scores["wer"]) == (2, 3, 0.0)
    found = hypotheses(tmp_path / "out")
    assert [each.get("reference") for each in found] == [None, None, None, *said[3:]]
    assert [each["text"] for each in found] == said


# Scores


def test_scores_are_those_of_jiwer(at_once):
    folder, scores = at_once
    found = hypotheses(folder)
    texts = [each["reference"] for each in found], [each["text"] for each in found]
    assert 0 < scores["wer"] == jiwer.wer(*texts) < 1
    assert scores["cer"] == jiwer.cer(*texts)
    assert scores == {**json.loads((folder / "scores.json").read_text()), "decoder": "greedy"}
    for speaker, line in scores["per_speaker"].items():
        of_speaker = [each for each in found if each["speaker"] == speaker]
        assert line["wer"] == jiwer.wer([each["reference"] for each in of_speaker], [each["text"] for each in of_speaker])
    assert [line["utterances"] for line in scores["per_speaker"].values()] == [4, 4, 3]
    for name, wanted in zip(("reference", "hypothesis"), texts, strict=True):
        lines = [line.rsplit("(", 1) for line in (folder / f"{name}.trn").read_text().splitlines()]
        assert [text.split() for text, _ in lines] == [text.split() for text in wanted]
        assert [sign for _, sign in lines] == [f"s{row % 3}-{row:02d}.flac)" for row in range(11)]


def test_scores_say_of_what_they_are(recogniser, corpus, at_once):
    _, scores = at_once
    assert (scores["model"], scores["weights"]) == (recogniser.name, digest_of_weights(str(recogniser)))
    assert scores["speech"]["corpora"] == [{"name": corpus.name, "is_on_hub": False, "config": None, "split": "test"}]
    assert scores["speech"]["share"] is None
    assert {name: scores["decoding"][name] for name in ("decoder", "mixed_precision", "window_in_seconds")} == {
        "decoder": "greedy", "mixed_precision": "no", "window_in_seconds": 30.0}
    assert scores["decoding"]["text"]["text_case"] == "lower"


def test_umlauts_and_capitals_come_through(shared_data, tmp_path):
    """Random weights: what is shown is the way, not the hearing."""
    with open(shared_data / "kerstin_de" / "test" / "metadata.csv", newline="") as table:
        texts = {row["file_name"]: row["text"] for row in csv.DictReader(table)}
    vocabulary = build_vocabulary(texts.values(), "letters")
    extractor = Wav2Vec2FeatureExtractor()
    Wav2Vec2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                   conv_dim=(16,) * 7, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2).save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = recognisers.build(recognisers.load_config(str(tmp_path), "--config_name", vocabulary, {}), vocabulary)
    umlauts = [vocabulary.tokens.index(letter) for letter in "äöüÄßG"]
    torch.nn.init.normal_(model.lm_head.weight)
    model.lm_head.bias.data[umlauts] += 8
    model.save_pretrained(tmp_path)
    recognisers.describe(extractor, vocabulary, TextRules(), None, model, str(tmp_path))
    scores = decoding.main(command(tmp_path, shared_data / "kerstin_de", tmp_path / "out"))
    found = hypotheses(tmp_path / "out")
    assert {each["utterance_id"]: each["reference"] for each in found} == texts
    assert len(set("äöüÄßG") & set("".join(each["text"] for each in found))) > 1
    pairs = [each["reference"] for each in found], [each["text"] for each in found]
    assert (scores["wer"], scores["cer"]) == (jiwer.wer(*pairs), jiwer.cer(*pairs))


# Beam search


@pytest.mark.parametrize("rescoring", [False, True], ids=["n-grams", "and a transformer"])
def test_beam_search_is_tuned_and_says_only_words_of_the_lexicon(rescoring, recogniser, corpus, arpa, tmp_path, capsys):
    pytest.importorskip("flashlight.lib.text", reason="needs requirements-decoding.txt")
    flags = ["--validation_split_names", "validation", "--lm_path", arpa, "--num_hypotheses", 4]
    if rescoring:
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(vocab_size=7, n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=0,
                                   eos_token_id=0, initializer_range=0.5)).save_pretrained(tmp_path / "gpt")
        write_tokenizer(tmp_path / "gpt", eos_token="<end>", unk_token="<unk>")
        flags += ["--rescoring_lm", tmp_path / "gpt", "--rescoring_weight", 0.25]
    argv = command(recogniser, corpus, tmp_path / "out", *flags)
    scores = decoding.main([*argv, "--tune", "6", "--lm_weight", "40", "--word_score", "-9"])
    told = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("tuned on 12 utterances in 6 trials"))
    wer, start, greedy = (float(rate) for rate in re.findall(r"([\d.]+)%", told))
    assert wer <= greedy
    assert wer < start
    lm_weight, word_score = told.split("--lm_weight ")[1].split(" ")[0], told.split("--word_score ")[1].split(",")[0]
    wanted = f"beam 50, lm.arpa (weight {lm_weight}, word {word_score})" + (", gpt (weight 0.25)" if rescoring else "")
    assert scores["decoder"] == json.loads((tmp_path / "out" / "scores.json").read_text())["decoder"] == wanted
    found = hypotheses(tmp_path / "out")
    assert {word for each in found for text in (each, *each.get("others", [])) for word in text["text"].split()} <= set(WORDS)
    for each in found:
        ranks = [each["score"], *(other["score"] for other in each.get("others", []))]
        assert ranks == sorted(ranks, reverse=True)
        assert [word["text"] for word in each["words"]] == each["text"].split()
    assert max(len(each.get("others", [])) for each in found) > 0
    decoding.main([*argv, "--lm_weight", lm_weight, "--word_score", word_score])
    assert hypotheses(tmp_path / "out") == found, "decoded with what was found"


def test_workers_of_the_beam_search_change_nothing(recogniser, corpus, arpa, tmp_path):
    pytest.importorskip("flashlight.lib.text", reason="needs requirements-decoding.txt")
    flags = ["--validation_split_names", "validation", "--lm_path", arpa, "--num_hypotheses", 3, "--tune", 4]
    for number in "012":
        decoding.main(command(recogniser, corpus, tmp_path / number, *flags, "--decoding_num_workers", number))
    for name in ("hypotheses.jsonl", "scores.json"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes() == (
            tmp_path / "2" / name).read_bytes()


def test_tuning_without_transcripts_is_refused(recogniser, corpus, arpa, tmp_path):
    pytest.importorskip("flashlight.lib.text", reason="needs requirements-decoding.txt")
    write_split(tmp_path / "corpus" / "validation", 2, 0.1, seed=6, text=lambda row, said: "")
    write_split(tmp_path / "corpus" / "test", 1, 0.1, seed=7)
    argv = command(recogniser, tmp_path / "corpus", tmp_path / "out", "--lm_path", arpa, "--tune")
    with pytest.raises(InputError, match="--tune: the part to tune on has no transcripts"):
        decoding.main([*argv, "--validation_split_names", "validation"])
    with pytest.raises(InputError, match="--tune needs a part to tune on: name it with --validation_split_names"):
        decoding.main(argv)


def test_without_flashlight_one_line_says_what_to_install(recogniser, corpus, arpa, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "flashlight.lib.text", None)
    monkeypatch.setattr(beam_decoding, "flashlight", runpy.run_path(beam_decoding.__file__)["flashlight"])
    told = refusal(decoding, command(recogniser, corpus, tmp_path / "out", "--lm_path", arpa))
    assert told == "--decoder beam needs flashlight-text: pip install -r requirements-decoding.txt"
    assert "prepared" not in capsys.readouterr().out, "before the corpus is prepared"


# Pseudo labels


def test_pseudo_labels_are_a_corpus_to_train_on(recogniser, corpus, tmp_path):
    labels = tmp_path / "labels"
    argv = command(recogniser, corpus, tmp_path / "all", "--pseudo_label", labels)
    decoding.main(argv)
    found = hypotheses(tmp_path / "all")
    with open(labels / "metadata.csv", newline="") as table:
        assert [(row["text"], row["speaker"]) for row in csv.DictReader(table)] == [(each["text"], each["speaker"])
                                                                                    for each in found]
    middle = float(np.median([each["confidence"] for each in found]))
    decoding.main(command(recogniser, corpus, tmp_path / "some", "--pseudo_label", tmp_path / "certain",
                          "--min_confidence", middle))
    assert len(list((tmp_path / "certain").glob("*.flac"))) == 6
    best = finetuning.main(list(map(str, [
        "--dataset_name", tmp_path / "certain", "--model_name_or_path", recogniser, "--output_dir", tmp_path / "student",
        "--max_train_steps", 1, "--validation_split_percentage", 0, "--report_to", "none", "--dataloader_num_workers", 0,
        "--preprocessing_num_workers", 1])))
    assert best == {"step": 0}
    records = [json.loads(line) for line in (tmp_path / "student" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 1
    assert 0 < records[-1]["loss"] < 100
    with pytest.raises(InputError, match=r"--pseudo_label .*/labels: holds metadata.csv already: remove the folder"):
        decoding.main([*argv, "--output_dir", str(tmp_path / "again")])
    assert not (tmp_path / "again").exists(), "refused before anything is heard"


# Text rules


def test_references_follow_the_rules_of_the_training(recogniser, corpus, at_once, tmp_path):
    """The corpus is in capitals, and the model was trained on small letters."""
    assert all(each["reference"].islower() for each in hypotheses(at_once[0]))
    scores = decoding.main(command(recogniser, corpus, tmp_path, "--text_case", "keep"))
    assert scores["words"]["hits"] == 0
    assert all(each["reference"].isupper() for each in hypotheses(tmp_path))
    decoding.main(command(recogniser, corpus, tmp_path, "--chars_to_ignore", "ab", "c"))
    assert not set("abc") & set("".join(each["reference"] for each in hypotheses(tmp_path)))


def test_phones(tmp_path):
    vocabulary = build_vocabulary(["aɪ t k s"], "phones")
    extractor = Wav2Vec2FeatureExtractor()
    Wav2Vec2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8,) * 7,
                   num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2).save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    torch.manual_seed(1)
    model = recognisers.build(recognisers.load_config(str(tmp_path), "--config_name", vocabulary, {}), vocabulary)
    torch.nn.init.normal_(model.lm_head.weight)
    model.lm_head.bias.data[:4] = -99.0
    model.save_pretrained(tmp_path)
    recognisers.describe(extractor, vocabulary, TextRules(unit="phones"), None, model, str(tmp_path))
    write_split(tmp_path / "corpus" / "test", 2, 0.1, seed=8, text=lambda row, said: "aɪ  t k")
    scores = decoding.main(command(tmp_path, tmp_path / "corpus", tmp_path / "out"))
    assert scores["words"]["reference"] == 6
    for each in hypotheses(tmp_path / "out"):
        assert each["reference"] == "aɪ t k"
        assert each["text"]
        assert set(each["text"].split()) <= {"aɪ", "t", "k", "s"}
        assert each["text"].split() == [word["text"] for word in each["words"]]


# Faults


def without(folder, recogniser, *names: str):
    """A copy of the recogniser that lacks some files."""
    folder.mkdir()
    for path in recogniser.iterdir():
        if path.name not in names:
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def encoder_only(folder):
    Wav2Vec2ForPreTraining(Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8,) * 7, codevector_dim=8,
        proj_codevector_dim=8, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def with_letters(folder, recogniser):
    for name in ("vocab.json", "tokenizer_config.json"):
        (folder / name).write_bytes((recogniser / name).read_bytes())
    return folder


def file_of(path, content: str = "not a model\n"):
    path.write_text(content)
    return path


FAULTS = {  # name: (flags, the message)
    "no tokenizer": (lambda t, r: ["--model_name_or_path", without(t / "m", r, "vocab.json", "tokenizer_config.json")],
                     "--model_name_or_path .*vocab"),
    "no weights": (lambda t, r: ["--model_name_or_path", without(t / "m", r, "model.safetensors")],
                   "--model_name_or_path .*: Error no file named model"),
    "cut weights": (lambda t, r: ["--model_name_or_path", cut(without(t / "m", r) / "model.safetensors").parent],
                    "--model_name_or_path .*: Error while deserializing"),
    "an encoder": (lambda t, r: ["--model_name_or_path", encoder_only(t / "m")],
                   r"--model_name_or_path .*/m: is a pretrained model and has no vocabulary: fine-tune it first with"),
    "an empty folder": (lambda t, r: ["--model_name_or_path", t], "--model_name_or_path .*: cannot be used"),
    "damaged rules": (lambda t, r: ["--model_name_or_path", file_of(without(t / "m", r) / "text_rules.json").parent],
                      "text_rules.json: is damaged"),
    "no language model": (lambda t, r: ["--lm_path", file_of(t / "lm.arpa")], "--lm_path .*: is no language model"),
    "no lexicon": (lambda t, r: ["--lexicon_path", t / "none"], "--lexicon_path .*/none: cannot be read"),
    "no transformer": (lambda t, r: ["--decoder", "beam", "--lm_unit", "token", "--rescoring_lm", t, "--num_hypotheses", 2],
                       "--rescoring_lm .*: is no causal language model"),
    "a file as output": (lambda t, r: ["--output_dir", file_of(t / "file")], "--output_dir .*/file: no folder can be made"),
    "below a file": (lambda t, r: ["--output_dir", file_of(t / "file") / "x"], "--output_dir .*: no folder can be made"),
    "labels in a file": (lambda t, r: ["--pseudo_label", file_of(t / "file")], "--pseudo_label .*: no folder can be made"),
    "greedy with an LM": (lambda t, r: ["--decoder", "greedy", "--lm_path", "x"], "--lm_path: of use only to --decoder beam"),
    "tuning nothing": (lambda t, r: ["--decoder", "beam", "--lm_unit", "token", "--tune"], "--tune: finds weights of"),
    "choosing from one": (lambda t, r: ["--decoder", "beam", "--lm_unit", "token", "--rescoring_lm", "x"],
                          "--rescoring_lm: chooses among --num_hypotheses"),
    "confident of nothing": (lambda t, r: ["--min_confidence", 0.5], "--min_confidence: .* --pseudo_label, which is not given"),
    "beam without words": (lambda t, r: ["--decoder", "beam"], "--lm_path: the words of --lm_unit word come from"),
    "overlapping too much": (lambda t, r: ["--window_in_seconds", 5, "--window_overlap_in_seconds", 5],
                             "--window_overlap_in_seconds 5: is not below"),
    "phones from letters": (lambda t, r: ["--unit", "phones"], "--unit phones: .* recognises letters: leave the flag out"),
    "no adapters": (lambda t, r: ["--model_name_or_path", with_letters(encoder_only(t / "m"), r), "--adapter_language", "deu"],
                    "--adapter_language deu: .* has no adapters"),
    "no head": (lambda t, r: ["--model_name_or_path", with_letters(encoder_only(t / "m"), r)],
                r"--model_name_or_path .*: is no recogniser: it has no lm_head\.bias"),
    "no such part": (lambda t, r: ["--prepared_split", "validation"], "--prepared_split validation: .* has no such part"),
}


def cut(path):
    path.write_bytes(path.read_bytes()[:5000])
    return path


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line(fault, recogniser, corpus, tmp_path):
    flags, message = FAULTS[fault]
    with pytest.raises(InputError, match=message) as told:
        decoding.main(list(map(str, [*command(recogniser, corpus, tmp_path / "out"), *flags(tmp_path, recogniser)])))
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 600
    assert not (tmp_path / "out" / "hypotheses.jsonl").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_ends_it_cleanly(number, code, recogniser, tmp_path):
    """While a recording of minutes is heard in thousands of windows, with a loader beside."""
    soundfile.write(tmp_path / "long.flac", sound(400.0), RATE)
    argv = command(recogniser, tmp_path / "long.flac", tmp_path / "out", "--window_in_seconds", 0.5, "--dataloader_num_workers",
                   1, "--window_overlap_in_seconds", 0.3, "--per_device_eval_batch_size", 1, split=None)
    said = tmp_path / "said"
    (process,) = start(decoding, argv, SAID=str(said))
    wait_until(lambda: said.exists() and "1 clips" in said.read_text(), process)
    os.kill(process.pid, number)
    assert codes([process]) == [code]
    assert "Traceback" not in said.read_text()
    assert not (tmp_path / "out" / "hypotheses.jsonl").exists()
