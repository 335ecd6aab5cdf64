"""N-best lists scored again by a causal language model of transformers."""

from collections.abc import Sequence

import torch
from safetensors import SafetensorError
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from wavtrain import InputError
from wavtrain.models.encoders import NOT_THERE
from wavtrain.recognition.beam_decoding import Candidate
from wavtrain.recognition.decoding import Hypothesis

BATCH_SIZE = 16
MOST_TOKENS = 1024  # of a piece, where the model does not say how much it can read


class Rescorer:
    """A language model and its tokenizer: a directory or Hub id."""

    def __init__(self, name: str, device: torch.device | str, cache_dir: str | None = None) -> None:
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name, cache_dir=cache_dir, trust_remote_code=False)
            model, loaded = AutoModelForCausalLM.from_pretrained(name, cache_dir=cache_dir, trust_remote_code=False,
                                                                 dtype=torch.float32, output_loading_info=True)
        except (*NOT_THERE, RuntimeError, SafetensorError) as error:
            raise InputError(f"--rescoring_lm {name}: is no causal language model of transformers that can be loaded with its "
                             f"tokenizer ({' '.join(str(error).split())[:200]})") from error
        if loaded["missing_keys"]:
            raise InputError(f"--rescoring_lm {name}: has no weights of a language model's "
                             f"{', '.join(sorted(loaded['missing_keys'])[:3])}")
        end, begin = self._tokenizer.eos_token_id, self._tokenizer.bos_token_id
        if end is None:
            raise InputError(f"--rescoring_lm {name}: its tokenizer has no end of sentence (eos_token)")
        self._begin, self._end = end if begin is None else begin, end
        self._model = model.to(device).eval()
        self._most = getattr(model.config, "max_position_embeddings", None) or MOST_TOKENS
        if not self._is_causal():
            raise InputError(f"--rescoring_lm {name}: sees words that are still to come, so it has no probability of a "
                             "sentence: give a causal model, as GPT-2 is")

    @torch.inference_mode()
    def scores(self, texts: Sequence[str]) -> list[float]:
        """The natural log-probability of each sentence with its end. What the model cannot read at once is read in pieces."""
        pieces: list[tuple[int, list[int]]] = []  # which text, and tokens of which the first is given
        for place, text in enumerate(texts):
            tokens = [*self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids, self._end]
            pieces += [(place, [self._begin, *tokens[first : first + self._most]])
                       for first in range(0, len(tokens), self._most)]
        pieces.sort(key=lambda piece: len(piece[1]))
        scores = [0.0] * len(texts)
        for first in range(0, len(pieces), BATCH_SIZE):
            owners, tokens = zip(*pieces[first : first + BATCH_SIZE], strict=True)
            for owner, score in zip(owners, self._log_probabilities(tokens), strict=True):
                scores[owner] += score
        return scores

    def ranked(
        self, candidates: Sequence[Candidate], weight: float, lm_weight: float = 0.0, word_score: float = 0.0
    ) -> list[Hypothesis]:
        """Best first, by acoustic score + `lm_weight` x n-gram score + `weight` x that of this model + `word_score` x words."""
        texts = [candidate.hypothesis.text for candidate in candidates]
        hypotheses = []
        for (said, acoustic_score, lm_score), score in zip(candidates, self.scores(texts), strict=True):
            total = acoustic_score + lm_weight * lm_score + weight * score + word_score * len(said.words)
            hypotheses.append(said._replace(score=total))
        return sorted(hypotheses, key=lambda hypothesis: -hypothesis.score)

    def _log_probabilities(self, sequences: Sequence[list[int]]) -> list[float]:
        """Of all but the first token of each. Padding comes behind them, where a causal model does not look."""
        width = max(map(len, sequences))
        tokens = torch.tensor([[*each, *[self._end] * (width - len(each))] for each in sequences], device=self._model.device)
        lengths = torch.tensor([len(each) for each in sequences], device=tokens.device)
        real = torch.arange(width, device=tokens.device) < lengths[:, None]  # (batch, width)
        logits = self._model(input_ids=tokens[:, :-1], attention_mask=real[:, :-1].long()).logits  # (batch, width - 1, tokens)
        losses = cross_entropy(logits.float().transpose(1, 2), tokens[:, 1:], reduction="none")
        return (-(losses * real[:, 1:]).sum(1)).tolist()

    @torch.inference_mode()
    def _is_causal(self) -> bool:
        tokens = torch.tensor([[self._begin, 0], [self._begin, 1]], device=self._model.device)
        first, second = self._model(input_ids=tokens).logits[:, 0]
        return torch.allclose(first, second, rtol=1e-3, atol=1e-4)
