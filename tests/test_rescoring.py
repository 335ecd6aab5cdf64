"""A sentence has one probability, whatever it is batched with."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from wavtrain import InputError
from wavtrain.recognition.beam_decoding import Candidate
from wavtrain.recognition.decoding import Hypothesis, Word
from wavtrain.recognition.rescoring import Rescorer

WORDS = ["<end>", "<unk>", "the", "cat", "sat", "on", "mat"]
TEXTS = ["the cat sat on the mat", "mat", "", "on on on on on on on on on on on", "the dog sat", *["cat sat", "the"] * 9]


def write_tokenizer(folder, **specials):
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials).save_pretrained(folder)


@pytest.fixture(scope="module")
def lm_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    torch.manual_seed(0)
    sizes = {"vocab_size": len(WORDS), "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, initializer_range=0.5)).save_pretrained(folder)
    write_tokenizer(folder, eos_token="<end>", unk_token="<unk>")
    return folder


def test_batches_change_nothing(lm_folder):
    rescorer = Rescorer(str(lm_folder), "cpu")
    together = rescorer.scores(TEXTS)
    alone = [rescorer.scores([text])[0] for text in TEXTS]
    assert together == pytest.approx(alone, abs=1e-4)
    assert rescorer.scores([]) == []


def test_scores_are_those_of_the_model_word_by_word(lm_folder):
    model = AutoModelForCausalLM.from_pretrained(lm_folder).eval()
    tokens = torch.tensor([0, *(WORDS.index(word) for word in "the cat sat".split()), 0])
    with torch.no_grad():
        log_probs = model(input_ids=tokens[None]).logits[0].log_softmax(1)
    expected = sum(log_probs[place, token].item() for place, token in enumerate(tokens[1:]))
    assert Rescorer(str(lm_folder), "cpu").scores(["the cat sat"]) == pytest.approx([expected], abs=1e-4)


def test_what_is_longer_than_the_model_reads_is_scored_in_pieces(lm_folder):
    rescorer = Rescorer(str(lm_folder), "cpu")
    first, rest = ["cat", "sat"] * 8, ["on", "the", "mat"]
    [whole], [start] = rescorer.scores([" ".join([*first, *rest])]), rescorer.scores([" ".join(rest)])
    with torch.no_grad():
        tokens = torch.tensor([[0, *(WORDS.index(word) for word in first)]])
        log_probs = AutoModelForCausalLM.from_pretrained(lm_folder).eval()(input_ids=tokens[:, :-1]).logits.log_softmax(2)
    assert whole == pytest.approx(log_probs.gather(2, tokens[:, 1:, None]).sum().item() + start, abs=1e-4)


def candidate(text, acoustic, lm_score):
    words = tuple(Word(word, 0.0, 0.1, 1.0) for word in text.split())
    return Candidate(Hypothesis(text, acoustic, 0.5, words), acoustic, lm_score)


def test_the_best_total_wins(lm_folder):
    rescorer = Rescorer(str(lm_folder), "cpu")
    candidates = [candidate("the mat", -1.0, -9.0), candidate("the cat", -1.1, -2.0), candidate("the cat sat", -1.3, -4.0)]
    for weights, best, score in (({}, 0, -1.0), ({"lm_weight": 1.0}, 1, -3.1), ({"word_score": 5.0}, 2, 13.7)):
        said = rescorer.ranked(candidates, weight=0.0, **weights)
        assert said[0] == candidates[best].hypothesis._replace(score=pytest.approx(score))
    scores = rescorer.scores([each.hypothesis.text for each in candidates])
    likeliest = max(range(3), key=scores.__getitem__)
    best, *others = rescorer.ranked(candidates, weight=100.0)
    assert best.score > others[0].score > others[1].score
    assert best.text == candidates[likeliest].hypothesis.text
    assert best.score == pytest.approx(candidates[likeliest].acoustic_score + 100 * scores[likeliest])


def test_what_is_no_causal_language_model_is_refused(lm_folder, tmp_path):
    with pytest.raises(InputError, match=r"--rescoring_lm .*nothing: is no causal language model"):
        Rescorer(str(tmp_path / "nothing"), "cpu")
    bert = BertConfig(vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertLMHeadModel(bert).save_pretrained(tmp_path / "bert")
    write_tokenizer(tmp_path / "bert", eos_token="<end>", unk_token="<unk>")
    with pytest.raises(InputError, match="sees words that are still to come"):
        Rescorer(str(tmp_path / "bert"), "cpu")
    GPT2LMHeadModel.from_pretrained(lm_folder).save_pretrained(tmp_path / "endless")
    write_tokenizer(tmp_path / "endless", unk_token="<unk>")
    with pytest.raises(InputError, match="no end of sentence"):
        Rescorer(str(tmp_path / "endless"), "cpu")
    (tmp_path / "endless" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="--rescoring_lm "):
        Rescorer(str(tmp_path / "endless"), "cpu")
