"""Attention clip by clip: what softmax and dropout say, with nothing kept, nothing heard of padding."""

import copy

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import Wav2Vec2Config, Wav2Vec2ConformerConfig, Wav2Vec2Model
from transformers.models.wav2vec2 import modeling_wav2vec2
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import Wav2Vec2ConformerModel

from wavtrain.models import attention
from wavtrain.models.attention import by_clip

SIZE, FRAMES, HEADS = 16, 40, 4


def tensors(clips=1, frames=FRAMES, size=SIZE, dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(clips, frames, HEADS, size, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3)]


def attend(query, key, value, mask=None, dropout=0.0, seed=1):
    torch.manual_seed(seed)
    return attention._attention(torch.nn.Identity(), query, key, value, mask, dropout=dropout)[0].transpose(1, 2)


def kept_of(query, key, dropout, seed=1):
    """Which weights are kept, seen by giving each frame a value of its own."""
    frames = query.shape[2]
    ones = torch.eye(frames).expand(*query.shape[:2], -1, -1)
    return attend(query, key, ones, dropout=dropout, seed=seed) != 0


def by_hand(query, key, value, kept, share):
    weights = (query @ key.mT / SIZE**0.5).softmax(-1)
    return (weights * kept / share) @ value


@pytest.mark.parametrize("at_once", [1 << 23, 2 * FRAMES**2, 1], ids=["all heads", "two heads", "head by head"])
def test_results_and_gradients_are_those_of_softmax_and_dropout(at_once, monkeypatch):
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", at_once)
    inputs = tensors(clips=3)
    share = 1 - round(0.3 * 65536) / 65536
    kept = kept_of(*inputs[:2], 0.3)
    upstream = torch.randn(3, HEADS, FRAMES, SIZE)
    ours = attend(*inputs, dropout=0.3)
    exact = [each.detach().double().requires_grad_() for each in inputs]
    theirs = by_hand(*exact, kept, share)
    torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-5)
    found = torch.autograd.grad(ours, inputs, upstream)
    wanted = torch.autograd.grad(theirs, exact, upstream.double())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-5, rtol=1e-5)


def test_as_many_weights_are_dropped_as_asked_and_others_in_every_clip_head_and_draw():
    query, key, _ = tensors(clips=4, frames=100)
    kept = kept_of(query, key, 0.1)
    shares = kept.double().mean((2, 3))
    assert (shares - 0.9).abs().max() < 5 * (0.09 / 100**2) ** 0.5
    assert abs(kept.double().mean() - 0.9) < 5 * (0.09 / kept.numel()) ** 0.5
    places = kept.flatten(0, 1).flatten(1).double()
    assert (torch.corrcoef(places) - torch.eye(len(places))).abs().max() < 0.06
    assert (kept == kept_of(query, key, 0.1)).all()
    assert not (kept == kept_of(query, key, 0.1, seed=2)).all()


def test_padding_is_not_heard_and_is_silent():
    query, key, value = tensors(clips=3)
    mask = torch.arange(FRAMES)[None] < torch.tensor([[FRAMES], [17], [1]])
    for dropout in (0.0, 0.2):
        heard = attend(query, key, value, mask, dropout)
        heard.square().sum().backward()
        for clip, length in enumerate((FRAMES, 17, 1)):
            assert not heard[clip, :, length:].any()
            assert not query.grad[clip, :, length:].any()
            if not dropout:
                alone = scaled_dot_product_attention(*(each[clip, :, :length] for each in (query, key, value)))
                torch.testing.assert_close(heard[clip, :, :length], alone, atol=1e-5, rtol=1e-5)


def test_no_array_of_frames_by_frames_is_kept():
    inputs = tensors(clips=2, frames=300)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        attend(*inputs, dropout=0.1)
    assert kept
    assert all(tensor.numel() <= HEADS * 300 * SIZE for tensor in kept)


def test_bfloat16_is_near():
    inputs = tensors(clips=2)
    coarse = [each.detach().bfloat16().requires_grad_() for each in inputs]
    kept = kept_of(*coarse[:2], 0.1)
    ours = attend(*coarse, dropout=0.1)
    assert ours.dtype == torch.bfloat16
    theirs = by_hand(*inputs, kept, 1 - round(0.1 * 65536) / 65536)
    torch.testing.assert_close(ours.float(), theirs, atol=0.03, rtol=0.03)
    found = torch.autograd.grad(ours.float().square().sum(), coarse)
    wanted = torch.autograd.grad(theirs.square().sum(), inputs)
    for one, other in zip(found, wanted, strict=True):
        assert (one.float() - other).norm() / other.norm() < 0.03


def tiny(kind, **settings):
    return kind(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=(16, 16),
                conv_stride=(5, 4), conv_kernel=(10, 8), num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
                layerdrop=0.0, hidden_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0, attention_dropout=0.2,
                mask_time_prob=0.0, **settings)


def test_the_layers_of_a_model_attend_so_and_its_own_config_is_left_alone():
    torch.manual_seed(0)
    stock = Wav2Vec2Model(tiny(Wav2Vec2Config)).train()
    model = copy.deepcopy(stock)
    by_clip(model.encoder)
    used = {module.config._attn_implementation for module in model.encoder.modules()
            if isinstance(module, modeling_wav2vec2.Wav2Vec2Attention)}
    assert used == {"by_clip"}
    assert model.config._attn_implementation == "sdpa"
    speech = torch.randn(2, 4000)
    heard = torch.ones(2, 4000, dtype=torch.long)
    heard[1, 2500:] = 0
    with torch.no_grad():
        ours, theirs = (each.eval()(speech, heard).last_hidden_state for each in (model, stock))
    frames = int(stock._get_feat_extract_output_lengths(torch.tensor(2500)))
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours[1, :frames], theirs[1, :frames], atol=1e-5, rtol=1e-5)


def test_a_layer_that_is_computed_again_drops_the_same():
    torch.manual_seed(0)
    model = Wav2Vec2Model(tiny(Wav2Vec2Config)).train()
    by_clip(model.encoder)
    again = copy.deepcopy(model)
    again.gradient_checkpointing_enable({"use_reentrant": False})
    gradients = []
    for each in (model, again):
        torch.manual_seed(3)
        each(torch.ones(2, 4000).cumsum(1) % 97 / 97).last_hidden_state.square().mean().backward()
        gradients.append([parameter.grad for parameter in each.parameters() if parameter.grad is not None])
    assert len(gradients[0]) > 20
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_relative_positions_are_left_to_torch():
    model = Wav2Vec2ConformerModel(tiny(Wav2Vec2ConformerConfig, position_embeddings_type="relative"))
    by_clip(model.encoder)
    assert model.encoder.config._attn_implementation == "sdpa"
