"""A recogniser as one ONNX file, for programs without Python:

    python -m wavtrain.recognition.onnx_export MODEL_DIR OUT.onnx [LANGUAGE]

Its input is what the model's feature extractor gives, `input_values` (batch, samples) or `input_features` (batch, frames,
features), of any number and any length; `logits` (batch, frames, tokens) come out. There is no mask: clips of a batch are of
one length. Read the tokens from vocab.json; what is <pad> there is the blank.
"""

import sys
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wavtrain import InputError
from wavtrain.arguments import run_as_script
from wavtrain.durable_files import written_beside
from wavtrain.models.convolutions import as_in_transformers
from wavtrain.recognition.padding import hears_waves
from wavtrain.recognition.recognisers import load_recogniser

NEEDED = ("onnx", "onnxscript")
TRACED_SAMPLES, TRACED_FRAMES = 16_000, 50  # any length does


class _Logits(nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model.lm_head(self.model.base_model(inputs).last_hidden_state)


def export(model_dir: str, path: str, language: str | None = None) -> None:
    """Write a recogniser, of one of its languages where it has several."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise InputError(f"{' and '.join(missing)} missing: pip install -r requirements-export.txt")
    model, _, _ = load_recogniser(model_dir, language)
    config, name = model.config, model.main_input_name
    if hears_waves(config):
        as_in_transformers(model.base_model.feature_extractor)
    shape = (2, TRACED_SAMPLES) if hears_waves(config) else (2, TRACED_FRAMES, config.feature_projection_input_dim)
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with written_beside(path) as beside, torch.no_grad():
        torch.onnx.export(_Logits(model).eval(), (torch.zeros(shape),), beside, input_names=[name], output_names=["logits"],
                          dynamic_shapes=(axes,), dynamo=True, external_data=False, verbose=False)


def main(words: Sequence[str]) -> None:
    """MODEL_DIR OUT.onnx [LANGUAGE]"""
    if not 2 <= len(words) <= 3 or any(word.startswith("-") for word in words):
        raise InputError("name a recogniser and a file: python -m wavtrain.recognition.onnx_export MODEL_DIR OUT.onnx "
                         "[LANGUAGE]")
    export(*words)


if __name__ == "__main__":
    run_as_script(lambda: main(sys.argv[1:]))
