"""Vocabularies: built, read from every form, saved so that transformers encodes and decodes alike."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import sound, write_model
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoProcessor, AutoTokenizer, Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2ForCTC, pipeline

from wavtrain import InputError
from wavtrain.recognition.transcripts import TextRules, normalised
from wavtrain.recognition.vocabularies import (
    Vocabulary,
    build_vocabulary,
    read_text_rules,
    read_vocabulary,
    save_tokenizer,
    saved_vocabularies,
)

SCRIPTS = ["Größe <s> übt", "مرحبا بالعالم", "नमस्ते क्\u200dष", "สวัสดี", "שלום", "привет", "don't [PAD]", "👩\u200d👩 😀 𝔄",
           "<unk> [UNK] </s>", "a . b , c ?"]
LETTERS = "".join(sorted({char for text in SCRIPTS for char in text} - {" "}))


def dump(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8", errors="surrogateescape")
    return str(path)


def test_letters_by_code_point_after_the_specials():
    vocabulary = build_vocabulary(iter(["über b", "b|😀 A"]), "letters")
    assert vocabulary.tokens == ("<pad>", "<s>", "</s>", "<unk>", "|", "A", "b", "e", "r", "ü", "😀")
    assert (vocabulary.blank, vocabulary.unknown, vocabulary.delimiter) == (0, 3, 4)
    ids = vocabulary.encode("über ßA ß")
    assert ids.dtype == np.int64
    assert ids.tolist() == [9, 6, 7, 8, 4, 3, 5, 4, 3]
    assert vocabulary.unknown_in("über ßA ß<s>") == ["ß", "ß", "<", "s", ">"]
    assert vocabulary.spelled(ids) == "über A"
    assert vocabulary.spelled([4, 9, 0, 4, 4, 1, 6, 2, 4]) == "ü b"
    assert vocabulary.encode("").tolist() == []
    assert vocabulary.spelled([]) == ""


def test_phones_are_what_spaces_separate():
    vocabulary = build_vocabulary(["t tʃ | a", "<unk> a a"], "phones")
    assert vocabulary.tokens == ("<pad>", "<s>", "</s>", "<unk>", "a", "t", "tʃ", "|")
    assert vocabulary.delimiter is None
    assert vocabulary.encode("tʃ t x <s> a").tolist() == [6, 5, 3, 3, 4]
    assert vocabulary.unknown_in("tʃ ttʃ a") == ["ttʃ"]
    assert vocabulary.spelled([6, 0, 5, 3, 4, 7]) == "tʃ t a |"


def test_no_text_is_refused():
    with pytest.raises(InputError, match=r"no text .* --text_column_name$"):
        build_vocabulary(["", " "], "letters")


def test_letters_of_several_characters():
    vocabulary = Vocabulary(("[PAD]", "[UNK]", "|", "s", "c", "h", "sch", "ch"), "letters", 0, 1, 2)
    assert vocabulary.encode("sch ch shx").tolist() == [6, 2, 7, 2, 3, 5, 1]
    assert vocabulary.spelled(vocabulary.encode("sch ch sh")) == "sch ch sh"


def test_dictionary_of_fairseq(tmp_path):
    path = dump(tmp_path / "dict.ltr.txt", "| 9\nE 7\nÜ 5 #fairseq:overwrite\n# 2\n")
    assert read_vocabulary(path, "--vocabulary", "letters") == Vocabulary(
        ("<pad>", "<s>", "</s>", "<unk>", "|", "E", "Ü", "#"), "letters", 0, 3, 4)
    phones = read_vocabulary(dump(tmp_path / "dict.phn.txt", "sil 9\ntʃ 2\n"), "--vocabulary", "phones")
    assert phones == Vocabulary(("<pad>", "<s>", "</s>", "<unk>", "sil", "tʃ"), "phones", 0, 3, None)


def test_json_in_any_order_and_of_several_languages(tmp_path):
    one = {"[PAD]": 3, "b": 1, "|": 0, "[UNK]": 2}
    expected = Vocabulary(("|", "b", "[UNK]", "[PAD]"), "letters", 3, 2, 0)
    assert read_vocabulary(dump(tmp_path / "vocab.json", one), "--vocabulary", "letters") == expected
    nested = dump(tmp_path / "many" / "vocab.json", {"eng": {"<pad>": 0, "|": 1, "<unk>": 2}, "deu": one})
    assert read_vocabulary(nested, "--vocabulary", "letters", "deu") == expected
    assert read_vocabulary(str(tmp_path / "many"), "--model", "letters", "deu") == expected  # a folder without a config
    assert read_vocabulary(str(tmp_path / "vocab.json"), "--vocabulary", "letters", "deu") == expected


GOOD = {"<pad>": 0, "<unk>": 1, "|": 2, "a": 3}


@pytest.mark.parametrize(("name", "content", "fault"), [
    ("vocab.json", "{", "Expecting property name"),
    ("vocab.json", "[]", "is not a JSON object"),
    ("vocab.json", {**GOOD, "b": 5}, "ids of its 5 tokens are not 0 to 4"),
    ("vocab.json", {**GOOD, "b": 3}, "ids of its 5 tokens are not 0 to 4"),
    ("vocab.json", {**GOOD, "b": "4"}, "ids of its 5 tokens are not 0 to 4"),
    ("vocab.json", '{"<pad>": 0, "<unk>": 1, "|": 2, "a": 3, "a": 4}', "'a' is there twice"),
    ("vocab.json", {"a": 0, "|": 1, "<unk>": 2}, "has no blank: add '<pad>'"),
    ("vocab.json", {"<pad>": 0, "|": 1}, "has no unknown token: add '<unk>'"),
    ("vocab.json", {"<pad>": 0, "<unk>": 1}, "has no word delimiter"),
    ("vocab.json", {"eng": GOOD, "fra": GOOD}, "has 2 languages and no 'deu': give --adapter_language, one of eng, fra"),
    ("dict.txt", "a 1\nb\n", "line 2 is not a token and its count"),
    ("dict.txt", "a 1\n| 3\na 2\n", "line 3: 'a' is there already"),
    ("dict.txt", "\udcff 1\n", "codec can't decode"),
    ("none.txt", None, "No such file"), ("none.json", None, "No such file"), ("no/model/here", None, "no/model/here")])
def test_faults_are_one_line(tmp_path, name, content, fault):
    path = tmp_path / name
    if content is not None:
        dump(path, content)
    with pytest.raises(InputError) as error:
        read_vocabulary(str(path), "--vocabulary", "letters", "deu")
    assert str(error.value).startswith(f"--vocabulary {path}: ")
    assert fault in str(error.value)
    assert "\n" not in str(error.value)


def test_checkpoints_of_others(tmp_path):
    """As tutorials leave them: other names, <s> and </s> added behind; adapters' vocabularies; phones to be phonemised."""
    letters = {"b": 0, "|": 1, "sch": 2, "[UNK]": 3, "[PAD]": 4}
    theirs = Wav2Vec2CTCTokenizer(dump(tmp_path / "v.json", letters), unk_token="[UNK]", pad_token="[PAD]")
    theirs.save_pretrained(tmp_path / "tutorial")
    ours = read_vocabulary(str(tmp_path / "tutorial"), "--model", "letters")
    assert ours == Vocabulary(("b", "|", "sch", "[UNK]", "[PAD]", "<s>", "</s>"), "letters", 4, 3, 1)
    assert ours.encode("bschb").tolist() == theirs("bschb").input_ids == [0, 2, 0]
    languages = dump(tmp_path / "n.json", {"eng": GOOD, "deu": {**GOOD, "ü": 4, "</s>": 5, "<s>": 6}})
    Wav2Vec2CTCTokenizer(languages, target_lang="deu").save_pretrained(tmp_path / "mms")
    assert read_vocabulary(str(tmp_path / "mms"), "--model", "letters").tokens[2:5] == ("|", "a", "ü")
    assert read_vocabulary(str(tmp_path / "mms"), "--model", "letters", "eng").tokens[:4] == tuple(GOOD)
    folder = tmp_path / "phones"
    dump(folder / "vocab.json", {"<s>": 1, "<pad>": 0, "</s>": 2, "<unk>": 3, "tʃ": 4, "a": 5})
    dump(folder / "tokenizer_config.json", {"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer", "do_phonemize": True})
    phones = read_vocabulary(str(folder), "--model", "phones")
    assert phones == Vocabulary(("<pad>", "<s>", "</s>", "<unk>", "tʃ", "a"), "phones", 0, 3, None)
    with pytest.raises(InputError, match=r"--model .*recognises phones: give --unit phones"):
        read_vocabulary(str(folder), "--model", "letters")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    vocabulary = build_vocabulary(SCRIPTS, "letters")
    save_tokenizer(vocabulary, TextRules(), str(folder))
    return vocabulary, AutoTokenizer.from_pretrained(folder), folder


def test_transformers_knows_the_same_tokens(saved):
    vocabulary, theirs, folder = saved
    assert isinstance(theirs, Wav2Vec2CTCTokenizer)
    assert theirs.convert_ids_to_tokens(list(range(len(theirs)))) == list(vocabulary.tokens)
    assert (theirs.pad_token_id, theirs.unk_token_id, theirs.word_delimiter_token_id) == (0, 3, 4)
    assert read_vocabulary(str(folder), "--model", "letters") == vocabulary


@given(st.lists(st.sampled_from([*SCRIPTS, *LETTERS, *" ß|\u0301", "<s>", "<pad>", "[PAD]", "|"]), max_size=12).map("".join))
@settings(max_examples=200, deadline=None)
def test_transformers_encodes_and_decodes_alike(saved, text):
    vocabulary, theirs, _ = saved
    text = normalised(text, TextRules(unicode_form="none"))
    ids = vocabulary.encode(text).tolist()
    assert theirs(text).input_ids == ids
    said = vocabulary.spelled(ids)
    assert " ".join(theirs.decode(ids, group_tokens=False, skip_special_tokens=True).split()) == said
    if not vocabulary.unknown_in(text):
        assert said == text
    frames = [token for i in ids for token in (i, i, vocabulary.blank)]
    assert theirs.decode(frames) == theirs.decode(ids, group_tokens=False)


@pytest.mark.parametrize("tokens", [("a", "[UNK]", "|", "b", "[PAD]"), ("<pad>", "a", "sch", "<unk>", " ")])
def test_vocabularies_of_others_come_back_as_they_were(tmp_path, tokens):
    unknown, blank, delimiter = (1, 4, 2) if "[UNK]" in tokens else (3, 0, 4)
    vocabulary = Vocabulary(tokens, "letters", blank, unknown, delimiter)
    save_tokenizer(vocabulary, TextRules(), str(tmp_path))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == len(tokens)
    assert theirs("a a").input_ids == vocabulary.encode("a a").tolist()
    assert theirs.decode(vocabulary.encode("a a"), group_tokens=False) == "a a"
    assert read_vocabulary(str(tmp_path), "--model", "letters") == vocabulary


def test_any_delimiter_is_read(tmp_path):
    vocabulary = Vocabulary(("<pad>", "<unk>", "|", "_"), "letters", 0, 1, 3)
    save_tokenizer(vocabulary, TextRules(), str(tmp_path))
    assert read_vocabulary(str(tmp_path), "--model", "letters") == vocabulary


def test_other_languages_stay(tmp_path):
    german, rules = build_vocabulary(["für b"], "letters"), TextRules()
    save_tokenizer(build_vocabulary(["a <s>"], "letters"), rules, str(tmp_path), "eng")
    english = saved_vocabularies(str(tmp_path))
    save_tokenizer(german, rules, str(tmp_path), "deu", english)
    assert saved_vocabularies(str(tmp_path)) == {**english, "deu": {token: i for i, token in enumerate(german.tokens)}}
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("für x").input_ids == german.encode("für x").tolist()
    assert read_vocabulary(str(tmp_path), "--model", "letters") == german
    assert read_vocabulary(str(tmp_path), "--model", "letters", "eng").tokens == tuple(english["eng"])
    theirs.set_target_lang("eng")
    assert theirs("a").input_ids == [english["eng"]["a"]]
    with pytest.raises(InputError, match=r"^--adapter_language deu: "):
        save_tokenizer(build_vocabulary(["a"], "phones"), rules, str(tmp_path), "deu")


def test_no_other_languages(tmp_path, saved):
    assert saved_vocabularies(str(tmp_path)) == {}
    assert saved_vocabularies(str(saved[2])) == {}
    dump(tmp_path / "vocab.json", "{")
    with pytest.raises(InputError, match=r"vocab\.json: is damaged"):
        saved_vocabularies(str(tmp_path))


@pytest.mark.parametrize(("unit", "text", "said"), [("letters", "für b", "ü"), ("phones", "tʃ t a", "tʃ")])
def test_a_pipeline_of_transformers_writes_it(tmp_path, unit, text, said):
    """Every frame says the same token, which is therefore the whole text."""
    vocabulary = build_vocabulary([text], unit)
    write_model(tmp_path)
    save_tokenizer(vocabulary, TextRules(unit=unit), str(tmp_path))
    model = Wav2Vec2ForCTC(Wav2Vec2Config.from_pretrained(tmp_path, vocab_size=len(vocabulary.tokens), pad_token_id=0))
    torch.nn.init.zeros_(model.lm_head.weight)
    with torch.no_grad():
        model.lm_head.bias.copy_(torch.arange(len(vocabulary.tokens)) == vocabulary.encode(said)[0])
    model.save_pretrained(tmp_path)
    assert pipeline("automatic-speech-recognition", str(tmp_path))(sound(0.5).astype(np.float32))["text"] == said
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert processor.batch_decode(vocabulary.encode(text)[None], group_tokens=False) == [text]
    assert processor(text=text).input_ids == vocabulary.encode(text).tolist()


def test_rules_are_saved_beside(tmp_path):
    assert read_text_rules(str(tmp_path)) is None
    rules = TextRules("lower", True, ("ß", "“"), "NFKC", "reject", "phones")
    save_tokenizer(build_vocabulary(["a"], "phones"), rules, str(tmp_path))
    assert read_text_rules(str(tmp_path)) == rules


def test_rules_come_from_the_hub_as_well(hub, tmp_path):
    repository = hub / "models" / "me" / "asr"
    repository.mkdir(parents=True)
    assert read_text_rules("me/asr", str(tmp_path / "before")) is None
    save_tokenizer(build_vocabulary(["a"], "letters"), TextRules("lower"), str(repository))
    assert read_text_rules("me/asr", str(tmp_path / "cache")) == TextRules("lower")


@pytest.mark.parametrize("content", ["{", "[]", '{"text_case": "loud"}', '{"colour": 1}', '{"chars_to_ignore": 1}'])
def test_damaged_rules_are_refused(tmp_path, content):
    dump(tmp_path / "text_rules.json", content)
    with pytest.raises(InputError, match=r"text_rules\.json: is damaged \(.*\): remove it"):
        read_text_rules(str(tmp_path))


def test_german_survives(shared_data, tmp_path):
    lines = [line for path in sorted((shared_data / "kerstin_de").rglob("metadata.csv"))
             for line in path.read_text("utf-8").splitlines(keepends=True)]
    texts = [normalised(row["text"], TextRules()) for row in csv.DictReader(lines) if row["text"] != "text"]
    vocabulary = build_vocabulary(texts, "letters")
    save_tokenizer(vocabulary, TextRules(), str(tmp_path))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(texts) == 120
    assert set("äöüßÄÖ") <= set(vocabulary.tokens)
    for text in texts:
        ids = vocabulary.encode(text)
        assert vocabulary.spelled(ids) == text == theirs.decode(ids, group_tokens=False)
        assert theirs(text).input_ids == ids.tolist()
