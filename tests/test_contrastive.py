"""The objective equals transformers' for the same masks, negatives and Gumbel noise; what it adds is checked by hand."""

import math

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2ConformerConfig, Wav2Vec2ConformerForPreTraining, Wav2Vec2ForPreTraining

from wavtrain.masking import first_of, masked_places, same_utterance_negatives, span_mask
from wavtrain.models import contrastive
from wavtrain.models.contrastive import ObjectiveSettings, Wav2Vec2ConformerPretraining, Wav2Vec2Pretraining
from wavtrain.models.encoders import adapted

SIZES = dict(  # noqa: C408 - keyword lists read better
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, conv_dim=(16,) * 7,
    num_codevectors_per_group=8, codevector_dim=16, proj_codevector_dim=24, num_negatives=10, num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4, mask_time_prob=0.65, diversity_loss_weight=0.1)
NO_DROPOUT = dict(  # noqa: C408
    hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0,
    feat_quantizer_dropout=0.0, layerdrop=0.0)
POST_LN = {"feat_extract_norm": "group", "do_stable_layer_norm": False}
PRE_LN = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
KINDS = {
    "base": (Wav2Vec2Config, Wav2Vec2ForPreTraining, Wav2Vec2Pretraining, POST_LN),
    "lv60": (Wav2Vec2Config, Wav2Vec2ForPreTraining, Wav2Vec2Pretraining, PRE_LN),
    "conformer": (Wav2Vec2ConformerConfig, Wav2Vec2ConformerForPreTraining, Wav2Vec2ConformerPretraining,
                  {**PRE_LN, "conformer_conv_dropout": 0.0}),
}
ONLY_THE_STOCK_LOSS = ObjectiveSettings(feature_penalty_weight=0.0, feature_grad_mult=1.0)


def pair(kind: str, **settings) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A model of transformers and ours with the same weights."""
    config_class, stock_class, our_class, norms = KINDS[kind]
    torch.manual_seed(0)
    stock = stock_class(config_class(**{**SIZES, **NO_DROPOUT, **norms, **settings}))
    ours = our_class(config_class(**{**SIZES, **NO_DROPOUT, **norms, **settings}))
    ours.load_state_dict(stock.state_dict())
    ours.objective = ONLY_THE_STOCK_LOSS
    return stock, ours


def batch(model: torch.nn.Module, lengths: tuple[int, ...], seed: int = 0) -> dict[str, torch.Tensor]:
    """Noise of the given lengths, padded, with a mask."""
    generator = np.random.default_rng(seed)
    num_frames = np.array([int(model._get_feat_extract_output_lengths(length)) for length in lengths])
    mask = span_mask(num_frames, 0.65, 10, 2, generator)
    places, counts = masked_places(mask)
    values = torch.from_numpy(generator.standard_normal((len(lengths), max(lengths)), dtype=np.float32))
    values[torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]] = 0
    return {"input_values": values, "mask": torch.from_numpy(mask), "places": torch.from_numpy(places),
            "counts": torch.from_numpy(counts), "num_frames": torch.from_numpy(num_frames)}


def stock_arguments(ours: dict[str, torch.Tensor], negatives: torch.Tensor, lengths: tuple[int, ...]) -> dict:
    """The same masks and negatives as transformers wants them: for all frames, as places in the flat batch."""
    num_rows, width = ours["mask"].shape
    sampled = torch.zeros(num_rows, width, negatives.shape[-1], dtype=torch.long)
    for row in range(num_rows):
        count = ours["counts"][row]
        sampled[row, ours["places"][row, :count]] = ours["places"][row][negatives[row, :count]]
        sampled[row] += row * width
    attention = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_values": ours["input_values"], "attention_mask": attention, "mask_time_indices": ours["mask"],
            "sampled_negative_indices": sampled}


def share_the_noise(monkeypatch, mask: torch.Tensor, counts: torch.Tensor, places: torch.Tensor) -> None:
    """Gumbel noise of one frame is the same whether all frames are quantized, as in transformers, or the masked ones."""
    noise = torch.empty(*mask.shape, 2, 8).exponential_(generator=torch.Generator().manual_seed(1)).log().neg()

    def noisy(logits: torch.Tensor, tau: float, hard: bool) -> torch.Tensor:
        if logits.dim() == 2:  # transformers: (batch x frames x groups, codes)
            noisy_logits = logits + noise.reshape(logits.shape)
        else:
            noisy_logits = logits + noise.gather(1, places[..., None, None].expand(logits.shape))
        soft = (noisy_logits / tau).softmax(-1)
        one_hot = torch.nn.functional.one_hot(soft.argmax(-1), soft.shape[-1]).float()
        return one_hot - soft.detach() + soft

    monkeypatch.setattr(torch.nn.functional, "gumbel_softmax", noisy)
    monkeypatch.setattr(contrastive, "gumbel_softmax", noisy)


def relative_error(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(((one - other).norm() / other.norm().clamp(min=1e-12)).detach())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [(16_000, 16_000, 16_000), (20_000, 13_000, 7_000)], ids=["even", "padded"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_loss_and_every_gradient_equal_those_of_transformers(kind, lengths, training, monkeypatch):
    stock, ours = pair(kind)
    stock.train(training)
    ours.train(training)
    inputs = batch(ours, lengths)
    if len(set(lengths)) == 1:
        inputs["num_frames"] = None
    torch.manual_seed(3)
    negatives = same_utterance_negatives(inputs["counts"], inputs["places"].shape[1], 10)
    share_the_noise(monkeypatch, inputs["mask"], inputs["counts"], inputs["places"])
    stock.set_gumbel_temperature(1.7)
    expected = stock(**stock_arguments(inputs, negatives, lengths))
    got = ours(**inputs, temperature=1.7, negatives=negatives)
    for name in ("loss", "contrastive_loss", "diversity_loss"):
        assert relative_error(got[name], getattr(expected, name)) < 1e-5, name
    expected.loss.backward()
    got["loss"].backward()
    gradients = dict(ours.named_parameters())
    for name, parameter in stock.named_parameters():
        if parameter.grad is None:
            assert gradients[name].grad is None or not gradients[name].grad.any(), name
        elif parameter.grad.norm() > 1e-4 * got["loss"].detach():  # biases whose gradient is zero but for rounding
            assert relative_error(gradients[name].grad, parameter.grad) < 1e-5, name
        else:
            assert (gradients[name].grad - parameter.grad).norm() < 1e-7 * got["loss"].detach(), name


def test_feature_penalty_and_gradient_multiplier_are_fairseqs():
    """The penalty is the mean square of the features before the layer norm; both reach the extractor multiplied."""
    _, ours = pair("base")
    inputs = batch(ours, (16_000, 16_000)) | {"num_frames": None}

    def gradients(settings: ObjectiveSettings) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        ours.objective = settings
        ours.zero_grad()
        torch.manual_seed(5)
        output = ours(**inputs, temperature=2.0)
        output["loss"].backward()
        return {name: each.grad.clone() for name, each in ours.named_parameters() if each.grad is not None}, output

    plain, without = gradients(ObjectiveSettings(10.0, 1.0))
    scaled, output = gradients(ObjectiveSettings(10.0, 0.1))
    for name in plain:
        factor = 0.1 if "feature_extractor" in name else 1.0
        torch.testing.assert_close(scaled[name], factor * plain[name], rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        features = ours.wav2vec2.feature_extractor(inputs["input_values"])
    expected = float(features.square().mean() * inputs["counts"].sum())
    assert float(output["feature_penalty"]) == pytest.approx(expected, rel=1e-5)
    assert float(output["loss"].detach()) == pytest.approx(
        float(output["contrastive_loss"] + 0.1 * output["diversity_loss"]) + 10 * expected, rel=1e-5)
    assert float(without["loss"].detach()) == pytest.approx(float(output["loss"].detach()), rel=1e-6)


def test_padding_does_not_change_the_penalty_of_a_layer_norm_model():
    _, ours = pair("lv60")
    ours.eval()
    alone, padded = batch(ours, (9_000,)), batch(ours, (9_000, 30_000))
    padded["input_values"][0, :9_000] = alone["input_values"][0]
    output = ours(**alone, temperature=1.0)["feature_penalty"] / alone["counts"].sum()
    with torch.no_grad():
        features = ours._features(padded["input_values"])
    both = contrastive._mean_square(features[:1], first_of(padded["num_frames"][:1], features.shape[1]))
    assert float(both) == pytest.approx(float(output), rel=1e-5)


def by_hand(ours, inputs, negatives, temperature: float) -> tuple[float, int]:
    """Loss and correct frames, frame by frame, in eval mode; negatives: for each frame a list of (vector, codes)."""
    with torch.no_grad():
        features = ours._features(inputs["input_values"])
        hidden, unmasked = ours.wav2vec2.feature_projection(features)
        hidden[inputs["mask"]] = ours.wav2vec2.masked_spec_embed
        hidden = ours.project_hid(ours.wav2vec2.encoder(hidden).last_hidden_state)
        quantized, _ = ours.quantizer(unmasked)
        codes = ours.quantizer.weight_proj(unmasked).unflatten(-1, (2, 8)).argmax(-1)
        targets = ours.project_q(quantized)
        loss, correct = 0.0, 0
        frames = [(row, int(frame)) for row in range(len(targets)) for frame in inputs["places"][row, : inputs["counts"][row]]]
        for place, (row, frame) in enumerate(frames):
            own = float(torch.cosine_similarity(hidden[row, frame], targets[row, frame], dim=0))
            wrong, is_beaten = [], True
            for other_row, other in (frames[number] for number in negatives[place]):
                is_same = bool((codes[other_row, other] == codes[row, frame]).all())
                value = float(torch.cosine_similarity(hidden[row, frame], targets[other_row, other], dim=0))
                is_beaten &= own > value and not is_same
                wrong += [] if is_same else [value]
            loss += math.log(sum(math.exp(value / temperature) for value in [own, *wrong])) - own / temperature
            correct += is_beaten
        return loss, correct


def test_accuracy_and_loss_by_hand_with_negatives_of_other_utterances(monkeypatch):
    _, ours = pair("base", num_negatives=4)
    ours.eval()
    inputs = batch(ours, (16_000, 16_000)) | {"num_frames": None}
    ours.objective = ObjectiveSettings(0.0, 1.0, cross_sample_negatives=3)
    counts, most = inputs["counts"], inputs["places"].shape[1]
    torch.manual_seed(7)
    own = same_utterance_negatives(counts, most, 4)
    across = contrastive.cross_utterance_negatives(counts, most, 3)
    monkeypatch.setattr(contrastive, "cross_utterance_negatives", lambda *_: across)
    output = ours(**inputs, temperature=1.0, negatives=own)
    starts = [0, int(counts[0])]
    chosen = []
    for row in range(2):
        for place in range(counts[row]):
            chosen.append([starts[row] + int(number) for number in own[row, place]])
            chosen[-1] += [starts[int(flat) // most] + int(flat) % most for flat in across[row, place]]
    loss, correct = by_hand(ours, inputs, chosen, 0.1)
    assert float(output["contrastive_loss"]) == pytest.approx(loss, rel=1e-4)
    assert int(output["correct"]) == correct
    assert 0 < correct < int(counts.sum())


def test_a_collapsed_codebook_has_no_accuracy():
    """All targets are one code: every negative equals its positive, and nothing is beaten."""
    _, ours = pair("base")
    ours.eval()
    with torch.no_grad():
        ours.quantizer.weight_proj.weight.zero_()
        ours.quantizer.weight_proj.bias.zero_()
    output = ours(**batch(ours, (16_000, 12_000)), temperature=1.0)
    assert int(output["correct"]) == 0
    usage = output["code_counts"] / output["code_counts"].sum(-1, keepdim=True)
    assert float(contrastive.perplexity(usage)) == pytest.approx(2)


def test_negatives_from_the_codebook_make_the_task_harder():
    _, ours = pair("base")
    inputs = batch(ours, (16_000,)) | {"num_frames": None}
    negatives = same_utterance_negatives(inputs["counts"], inputs["places"].shape[1], 10)
    ours.eval()
    without = ours(**inputs, temperature=1.0, negatives=negatives)
    ours.objective = ObjectiveSettings(0.0, 1.0, codebook_negatives=50)
    output = ours(**inputs, temperature=1.0, negatives=negatives)
    assert output["contrastive_loss"] > without["contrastive_loss"]
    output["loss"].backward()
    assert ours.quantizer.codevectors.grad.abs().sum() > 0


def test_a_batch_without_masked_frames_has_no_loss_and_gradients_of_zero():
    _, ours = pair("base")
    inputs = batch(ours, (2_000, 1_500))
    assert int(inputs["counts"].sum()) == 0
    output = ours(**inputs, temperature=2.0)
    output["loss"].backward()
    assert float(output["loss"].detach()) == 0
    assert all(each.grad is not None and not each.grad.any() for each in ours.parameters() if each.requires_grad)


def test_layerdrop_leaves_every_parameter_a_gradient_and_drops_as_often_as_asked():
    _, ours = pair("base", layerdrop=0.4)
    assert ours.config.layerdrop == 0.4
    inputs = batch(ours, (8_000,)) | {"num_frames": None}
    dropped = 0
    for seed in range(60):
        ours.zero_grad()
        torch.manual_seed(seed)
        ours(**inputs, temperature=2.0)["loss"].backward()
        for layer in ours.wav2vec2.encoder.layers:
            assert all(each.grad is not None for each in layer.parameters())
            dropped += not layer.attention.q_proj.weight.grad.any()
    assert 0.25 < dropped / 120 < 0.55
    ours.eval()
    with torch.no_grad():
        assert len({float(ours(**inputs, temperature=2.0)["feature_penalty"]) for _ in range(3)}) == 1


def test_gradient_checkpointing_changes_no_gradient():
    _, ours = pair("lv60", hidden_dropout=0.1, layerdrop=0.3)
    inputs = batch(ours, (16_000, 9_000))

    def gradients() -> list[torch.Tensor]:
        ours.zero_grad()
        torch.manual_seed(11)
        ours(**inputs, temperature=2.0)["loss"].backward()
        return [each.grad.clone() for each in ours.parameters()]

    plain = gradients()
    adapted(ours, checkpoints=True, compiles=False)
    for one, other in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_logits_stay_float32_under_bfloat16():
    _, ours = pair("lv60")
    inputs = batch(ours, (16_000, 16_000)) | {"num_frames": None}
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        output = ours(**inputs, temperature=2.0)
    assert output["loss"].dtype == output["contrastive_loss"].dtype == torch.float32
    torch.manual_seed(0)
    exact = ours(**inputs, temperature=2.0)
    assert relative_error(output["loss"], exact["loss"]) < 0.02
