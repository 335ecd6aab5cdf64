"""What onnxruntime computes from the exported file is what the model says, for lengths that were not traced."""

import numpy as np
import pytest
import torch
from conftest import sound
from test_recognisers import LARGER, config_folder, load, write

from wavtrain import InputError
from wavtrain.recognition import onnx_export, recognisers
from wavtrain.recognition.decoding import greedy

FEW_LAYERS = {"num_hidden_layers": 1, "conv_dim": (8, 8), "conv_kernel": (20, 32), "conv_stride": (10, 32)}  # soon exported
LENGTHS = (4000, 12_345, 30_000)


def folder_of(tmp_path, kind: str) -> str:
    """A recogniser whose head says something."""
    torch.manual_seed(0)
    model = recognisers.build(load(config_folder(tmp_path / "config", kind, **FEW_LAYERS), LARGER), LARGER)
    torch.nn.init.normal_(model.lm_head.weight)
    return write(model, tmp_path / "recogniser", kind, LARGER)


@pytest.mark.parametrize("kind", ["wav2vec2", "wav2vec2-large"])
def test_onnxruntime_says_the_same(kind, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = folder_of(tmp_path, kind)
    path = tmp_path / "model.onnx"
    onnx_export.main([folder, str(path)])
    session = onnxruntime.InferenceSession(str(path))
    model, extractor, vocabulary = recognisers.load_recogniser(folder)
    for length, num in zip(LENGTHS, (1, 2, 1), strict=True):
        wave = (sound(2)[:length] / 32768).astype(np.float32)
        given = np.stack([recognisers.features_of(wave * scale, extractor) + (1 - scale) for scale in (1.0, 0.5)[:num]])
        (logits,) = session.run(["logits"], {"input_values": given})
        with torch.no_grad():
            wanted = model(torch.from_numpy(given))["log_probs"]
        found = torch.from_numpy(logits).log_softmax(-1)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)
        for ours, theirs in zip(wanted, found, strict=True):
            text = greedy(ours, vocabulary, 0.02).text
            assert text
            assert greedy(theirs, vocabulary, 0.02).text == text


def test_without_onnx_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(onnx_export, "NEEDED", ("onnx_that_is_not_there",))
    with pytest.raises(InputError, match=r"onnx_that_is_not_there missing: pip install -r requirements-export.txt"):
        onnx_export.export(str(tmp_path), str(tmp_path / "model.onnx"))


def test_it_says_how_it_is_called(tmp_path):
    with pytest.raises(InputError, match=r"python -m wavtrain.recognition.onnx_export MODEL_DIR OUT.onnx \[LANGUAGE\]"):
        onnx_export.main([str(tmp_path)])
