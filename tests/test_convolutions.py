"""The feature encoder as matrix products: the numbers of transformers', in every family, at any length, and less memory."""

import copy

import pytest
import torch
from conftest import TINY_MODEL
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModel
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Config, Wav2Vec2FeatureEncoder

from wavtrain import InputError
from wavtrain.models.convolutions import as_in_transformers, channels_last, kernels_and_strides

KERNELS_AND_STRIDES = [((10, 3, 3, 2), (5, 2, 2, 2)), ((10, 8, 4), (5, 4, 2)), ((3, 5), (3, 4)), ((2, 7, 1), (4, 3, 1))]
FAMILIES = ("wav2vec2", "hubert", "wavlm", "data2vec-audio", "unispeech", "unispeech-sat", "sew")


def pair(norm: str = "layer", bias: bool = True, shape: tuple = KERNELS_AND_STRIDES[0]) -> tuple[nn.Module, nn.Module]:
    """transformers' and ours, with the same weights, none of them a neutral one."""
    kernels, strides = shape
    config = Wav2Vec2Config(**TINY_MODEL | {"conv_dim": (32,) * len(kernels), "conv_kernel": kernels, "conv_stride": strides,
                                            "num_feat_extract_layers": len(kernels), "conv_bias": bias,
                                            "feat_extract_norm": norm})
    torch.manual_seed(0)
    stock = Wav2Vec2FeatureEncoder(config)
    for parameter in stock.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    ours = copy.deepcopy(stock)
    channels_last(ours)
    return stock, ours


def error(one: Tensor, other: Tensor) -> float:
    return float((one - other).detach().norm() / other.detach().norm())


@pytest.mark.parametrize("num_samples", [2000, 2001, 2013, 2019])
@pytest.mark.parametrize("shape", KERNELS_AND_STRIDES, ids=str)
@pytest.mark.parametrize(("norm", "bias"), [("layer", True), ("layer", False), ("group", False)])
def test_features_and_gradients_are_those_of_transformers(norm, bias, shape, num_samples):
    stock, ours = (each.double() for each in pair(norm, bias, shape))
    waves = torch.randn(3, num_samples, dtype=torch.float64)
    expected, got = stock(waves), ours(waves)
    assert got.shape == expected.shape
    assert error(got, expected) < 1e-12
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (got * weights).sum().backward()
    for (name, parameter), other in zip(ours.named_parameters(), stock.parameters(), strict=True):
        assert error(parameter.grad, other.grad) < 1e-9, name


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_float32_is_as_near_to_the_truth_as_transformers(norm):
    stock, ours = pair(norm)
    truth = copy.deepcopy(stock).double()
    waves = torch.randn(2, 30_000)
    waves[1, 9_000:] = 0.0  # padding
    weights = torch.randn_like(stock(waves))
    for model in (stock, ours, truth):
        model(waves.to(next(model.parameters()).dtype)).backward(weights.to(next(model.parameters()).dtype))
    for (name, mine), theirs, true in zip(ours.named_parameters(), stock.parameters(), truth.parameters(), strict=True):
        assert error(mine.grad, true.grad) < max(2 * error(theirs.grad, true.grad), 2e-6), name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_layers_of_this_kind(family):
    config = AutoConfig.for_model(family, **TINY_MODEL, conv_kernel=(10, 3, 3, 3, 3, 2, 2), conv_stride=(5, 2, 2, 2, 2, 2, 2))
    stock = AutoModel.from_config(config).feature_extractor.double()
    ours = copy.deepcopy(stock)
    channels_last(ours)
    waves = torch.randn(2, 4000, dtype=torch.float64)
    assert error(ours(waves), stock(waves)) < 1e-12


def test_a_group_norm_is_over_the_real_frames():
    """Each clip comes out as it does alone."""
    stock, _ = pair("group", bias=False)
    ours, lengths = copy.deepcopy(stock), [4000, 3000, 1500]
    ends = torch.tensor([[(length - 10) // 5 + 1] for length in lengths])
    channels_last(ours, lambda frames: torch.arange(frames) < ends)
    waves = torch.randn(3, 4000)
    for row, length in enumerate(lengths):
        waves[row, length:] = 0.0
    got = ours(waves)
    for row, length in enumerate(lengths):
        alone = stock(waves[row : row + 1, :length])
        torch.testing.assert_close(got[row : row + 1, :, : alone.shape[2]], alone, rtol=1e-4, atol=1e-5)


def test_autocast_gives_bfloat16_and_gradients_in_float32():
    stock, ours = pair("layer")
    waves = torch.randn(2, 4000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ours(waves)
    assert got.dtype == torch.bfloat16
    assert error(got.float(), stock(waves)) < 0.02
    got.float().square().sum().backward()
    stock(waves).square().sum().backward()
    for (name, parameter), other in zip(ours.named_parameters(), stock.parameters(), strict=True):
        assert parameter.grad.dtype == torch.float32
        assert error(parameter.grad, other.grad) < 0.05, name


def bytes_kept(model: nn.Module, waves: Tensor) -> int:
    """For the backward pass, and the result."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        features = model(waves)
    kept = sum(each.nbytes() for each in profiled.profiler.kineto_results.events() if each.name() == "[memory]")
    assert features.requires_grad
    return kept


@pytest.mark.parametrize(("norm", "share"), [("layer", 0.75), ("group", 0.9)])
def test_less_is_kept(norm, share):
    stock, ours = pair(norm)
    waves = torch.randn(4, 80_000)
    assert bytes_kept(ours, waves) < share * bytes_kept(stock, waves)


def test_kernels_and_strides_are_the_configs():
    config = Wav2Vec2Config(conv_kernel=(10, 3), conv_stride=(5, 2), conv_dim=(8, 8))
    assert kernels_and_strides(config) == ((10, 5), (3, 2))


def test_nothing_is_kept_without_gradients():
    _, ours = pair()
    for parameter in ours.parameters():
        parameter.requires_grad_(False)
    assert ours(torch.randn(2, 4000)).grad_fn is None


def test_it_can_be_undone():
    stock, ours = pair()
    as_in_transformers(ours)
    waves = torch.randn(2, 4000)
    assert torch.equal(ours(waves), stock(waves))
    assert "forward" not in vars(ours)


@pytest.mark.parametrize(("kernels", "strides"), [((10, 3), (5, 0)), ((0, 3), (5, 2)), ((10, 3), (5,))])
def test_convolutions_that_make_no_frames_are_refused(kernels, strides):
    config = Wav2Vec2Config()
    config.conv_kernel, config.conv_stride = kernels, strides
    with pytest.raises(InputError, match="make no frames"):
        kernels_and_strides(config)
