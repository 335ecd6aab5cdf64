"""Every family of encoders: transformers' loss and gradients, no influence of padding, masks, layerdrop, frozen encoders."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCTC

from wavtrain.recognition.ctc import leave_out_unused, recogniser_class
from wavtrain.recognition.padding import convolved

SIZES = dict(  # noqa: C408 - keyword lists read better
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, conv_dim=(8,) * 7, vocab_size=9,
    num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, pad_token_id=0, ctc_loss_reduction="sum",
    ctc_zero_infinity=True, hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0,
    final_dropout=0.0, layerdrop=0.0, conformer_conv_dropout=0.0, mask_time_prob=0.3, mask_time_length=2)
PRE_LN = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
BERT = {"feature_projection_input_dim": 20, "conv_depthwise_kernel_size": 5}
SEW = {"conv_kernel": (10, 3, 3, 3, 3, 2, 2), "conv_stride": (5, 2, 2, 2, 2, 2, 2), "conv_dim": (8,) * 7}
KINDS = {
    "wav2vec2": ("wav2vec2", {}),
    "wav2vec2-large": ("wav2vec2", PRE_LN),
    "wav2vec2-adapter": ("wav2vec2", {"add_adapter": True, "num_adapter_layers": 2}),
    "wav2vec2-mms": ("wav2vec2", {**PRE_LN, "adapter_attn_dim": 4}),
    "conformer": ("wav2vec2-conformer", {**PRE_LN, "position_embeddings_type": "relative", "conv_depthwise_kernel_size": 5}),
    "conformer-rotary": ("wav2vec2-conformer", {"position_embeddings_type": "rotary", "conv_depthwise_kernel_size": 5}),
    "bert": ("wav2vec2-bert", BERT),
    "bert-adapter": ("wav2vec2-bert", {**BERT, "add_adapter": True, "num_adapter_layers": 1, "output_hidden_size": 16,
                                       "use_intermediate_ffn_before_adapter": True}),
    "hubert": ("hubert", {}),
    "hubert-batch-norm": ("hubert", {"conv_pos_batch_norm": True}),
    "wavlm": ("wavlm", {"num_buckets": 16, "max_bucket_distance": 20}),
    "wavlm-large": ("wavlm", {**PRE_LN, "num_buckets": 16, "max_bucket_distance": 20}),
    "data2vec": ("data2vec-audio", {"conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 3}),
    "unispeech": ("unispeech", {}),
    "unispeech-sat": ("unispeech-sat", PRE_LN),
    "sew": ("sew", SEW),
}
LENGTHS = (2600, 5200, 3891)
every_kind = pytest.mark.parametrize("kind", KINDS)


def pair(kind: str, **settings) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A model of transformers, and ours with the same weights; in evaluation mode."""
    family, own = KINDS[kind]
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **own, **settings})
    stock, ours = AutoModelForCTC.from_config(config), recogniser_class(config)(config)
    for name, parameter in stock.named_parameters():  # what begins at 0 or 1 could hide a fault
        if parameter.dim() == 1 and "original" not in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    ours.load_state_dict(stock.state_dict())
    return stock.eval(), ours.eval()


def inputs_of(model: torch.nn.Module, lengths: tuple[int, ...] = LENGTHS) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with padding that is noise too, and what of it is real."""
    generator = torch.Generator().manual_seed(1)
    if model.main_input_name == "input_features":
        lengths = tuple(length // 163 for length in lengths)
        return torch.randn(len(lengths), max(lengths), 20, generator=generator), torch.tensor(lengths)
    return torch.randn(len(lengths), max(lengths), generator=generator), torch.tensor(lengths)


def labels_of(seed: int = 0, num: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.stack([torch.randperm(8, generator=generator)[:4] + 1 for _ in range(num)])
    return {"labels": labels, "label_lengths": torch.tensor([2, 4, 3][:num])}


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_equal_gradients(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    size = torch.cat([gradient.flatten() for gradient in wanted.values()]).norm()
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() < tolerance * max(gradient.norm(), 1e-2 * size), name


@every_kind
def test_loss_and_gradients_are_those_of_transformers(kind):
    stock, ours = pair(kind)
    inputs, _ = inputs_of(stock, (3891, 3891, 3891))
    given = labels_of()
    padded = given["labels"].where(torch.arange(4) < given["label_lengths"][:, None], -100)
    wanted = stock(inputs, labels=padded)
    found = ours(inputs, **given)
    torch.testing.assert_close(found["loss"], wanted.loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(found["log_probs"], wanted.logits.log_softmax(-1), rtol=0, atol=1e-6)
    torch.testing.assert_close(found["losses"].sum(), wanted.loss.detach(), rtol=1e-6, atol=0)
    assert_equal_gradients(gradients(ours, found["loss"]), gradients(stock, wanted.loss), 1e-5)


@every_kind
def test_a_padded_batch_equals_its_clips_alone(kind):
    """Of transformers' own class, loss and gradients too: real padding is noise here, so nothing may look at it."""
    stock, ours = pair(kind)
    inputs, lengths = inputs_of(stock)
    given = labels_of()
    found = ours(inputs, lengths, **given)
    alone = 0
    for row, length in enumerate(lengths.tolist()):
        output = stock(inputs[row : row + 1, :length], labels=given["labels"][row : row + 1, : given["label_lengths"][row]])
        width = output.logits.shape[1]
        torch.testing.assert_close(found["log_probs"][row, :width], output.logits[0].log_softmax(-1), rtol=0, atol=2e-5)
        torch.testing.assert_close(found["losses"][row], output.loss.detach(), rtol=1e-5, atol=0)
        alone = alone + output.loss
    torch.testing.assert_close(found["loss"], alone, rtol=1e-5, atol=0)
    assert_equal_gradients(gradients(ours, found["loss"]), gradients(stock, alone), 2e-5)


@every_kind
def test_masks_are_the_given_ones_and_nothing_else_is_random(kind):
    _, ours = pair(kind, mask_feature_prob=0.5, mask_feature_length=2, layerdrop=0.0)
    ours.train()
    inputs, lengths = inputs_of(ours)
    frames = convolved(inputs.shape[1], ours.config)
    time_mask = torch.zeros(3, frames, dtype=torch.bool)
    time_mask[:, 2:5] = True
    channel_mask = torch.zeros(3, 16, dtype=torch.bool)
    channel_mask[1, 3] = True
    seen = []
    ours.base_model.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    state = np.random.get_state()[2]
    with torch.no_grad():
        ours(inputs, lengths)
        ours(inputs, lengths, time_mask=time_mask, channel_mask=channel_mask)
    plain, masked = seen
    wanted = plain.clone()
    wanted[time_mask] = ours.base_model.masked_spec_embed
    wanted[1, :, 3] = 0
    torch.testing.assert_close(masked, wanted, rtol=0, atol=0)
    assert ours._padding.adapter_layers or np.random.get_state()[2] == state


@every_kind
def test_a_dropped_layer_has_gradients_of_zero(kind):
    _, ours = pair(kind, layerdrop=0.999999)
    ours.train()
    inputs, lengths = inputs_of(ours)
    torch.manual_seed(0)
    loss = ours(inputs, lengths, **labels_of())["loss"]
    found = gradients(ours, loss)
    names = [name for name, _ in ours.named_parameters() if ".encoder.layers." in name or ".adapter." in name]
    assert set(names) <= set(found)
    kept = {name for name in names if ".adapter." in name or (kind.startswith("wavlm") and ".layers.0." in name)}
    assert not any(found[name].any() for name in names if name not in kept)
    assert all(found[name].any() for name in kept if not name.endswith(("k_proj.bias", "linear_k.bias")))


@every_kind
def test_a_frozen_encoder_has_gradients_of_zero_and_the_head_its_own(kind):
    _, ours = pair(kind)
    inputs, lengths = inputs_of(ours)
    ours.freeze_feature_encoder()
    leave_out_unused(ours)
    wanted = gradients(ours, ours(inputs, lengths, **labels_of())["loss"])["lm_head.weight"]
    ours.encoder_is_frozen = True
    found = gradients(ours, ours(inputs, lengths, **labels_of())["loss"])
    assert {id(parameter) for parameter in ours.encoder_parameters()} == {
        id(parameter) for name, parameter in ours.named_parameters() if name in found and not name.startswith("lm_head")}
    assert not any(gradient.any() for name, gradient in found.items() if not name.startswith("lm_head"))
    torch.testing.assert_close(found["lm_head.weight"], wanted)
    assert not any(name for name in found if "feature_extractor" in name)


@every_kind
def test_clip_by_clip_where_nothing_learns_gives_the_same(kind):
    _, ours = pair(kind)
    inputs, lengths = inputs_of(ours)
    learning = ours.eval()(inputs, lengths)["log_probs"]
    with torch.no_grad():
        torch.testing.assert_close(ours(inputs, lengths)["log_probs"], learning.detach())


def test_a_frozen_feature_encoder_keeps_nothing_for_a_backward_pass():
    _, ours = pair("wav2vec2")
    inputs, _ = inputs_of(ours)
    kept = []

    def features_of_the_encoder() -> torch.Tensor:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
            return ours.train().base_model.feature_extractor(inputs)

    assert features_of_the_encoder().requires_grad
    assert kept
    ours.freeze_feature_encoder()
    assert not features_of_the_encoder().requires_grad
    assert not kept


@every_kind
def test_what_is_left_out_is_what_gets_no_gradient(kind):
    _, ours = pair(kind)
    ours.train().freeze_feature_encoder()
    state = torch.get_rng_state()
    unused = leave_out_unused(ours)
    assert torch.equal(torch.get_rng_state(), state)
    assert ours.training
    assert unused == [name for name, _ in ours.named_parameters() if kind.startswith("conformer") and "pos_conv_embed" in name]
    inputs, lengths = inputs_of(ours)
    mask = torch.zeros(3, convolved(inputs.shape[1], ours.config), dtype=torch.bool)
    mask[:, 1] = True
    found = gradients(ours, ours(inputs, lengths, **labels_of(), time_mask=mask)["loss"])
    assert set(found) == {name for name, parameter in ours.named_parameters() if parameter.requires_grad}


def test_without_masks_over_time_their_embedding_is_left_out():
    _, ours = pair("wav2vec2", mask_time_prob=0.0, mask_feature_prob=0.1, mask_feature_length=2)
    assert leave_out_unused(ours) == ["wav2vec2.masked_spec_embed"]


def test_what_cannot_be_aligned_adds_nothing():
    """Two tokens in one frame: an infinite loss, which would spoil the update."""
    _, ours = pair("wav2vec2-large")
    inputs, lengths = inputs_of(ours, (450, 5200))
    given = labels_of(num=2)
    output = ours(inputs, lengths, **given)
    assert output["losses"][0] == 0
    assert output["losses"][1] > 0
    assert all(gradient.isfinite().all() for gradient in gradients(ours, output["loss"]).values())


def test_activations_computed_again_give_the_same_gradients():
    _, ours = pair("conformer", layerdrop=0.5, hidden_dropout=0.1)
    ours.train()
    inputs, lengths = inputs_of(ours)
    found = []
    for checkpoints in (False, True):
        if checkpoints:
            ours.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        found.append(gradients(ours, ours(inputs, lengths, **labels_of())["loss"]))
    assert_equal_gradients(found[1], found[0], 1e-6)


@pytest.mark.parametrize("kind", ["wav2vec2", "conformer", "bert", "wavlm", "data2vec"])
def test_bfloat16_keeps_the_loss_in_float32(kind):
    _, ours = pair(kind)
    inputs, lengths = inputs_of(ours)
    exact = ours(inputs, lengths, **labels_of())["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        output = ours(inputs, lengths, **labels_of())
    assert output["loss"].dtype == output["log_probs"].dtype == torch.float32
    torch.testing.assert_close(output["loss"], exact, rtol=0.02, atol=0)
