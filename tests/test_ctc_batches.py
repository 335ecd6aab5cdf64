"""Clips with text as micro-batches: features, labels, speeds, masks and padding, and from what they follow."""

import dataclasses
import io

import datasets
import numpy as np
import pytest
import soundfile
import soxr
import torch
from conftest import TINY_MODEL, sound
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

from wavtrain import InputError
from wavtrain.batching import BatchBudget, MicroBatch
from wavtrain.loading import loaded
from wavtrain.places import Place
from wavtrain.recognition import recognisers
from wavtrain.recognition.ctc_batches import CtcBatches, CtcSettings, SpanMasks
from wavtrain.recognition.padding import convolutions
from wavtrain.recognition.transcripts import TextRules
from wavtrain.recognition.vocabularies import build_vocabulary

SAMPLES, TEXTS = [16_000, 9_000, 12_345, 5_000, 16_003], ["ab", "B a", "cab", "a", "bb"]
VOCABULARY = build_vocabulary(["ab c"], "letters")
CONFIG = Wav2Vec2Config(**TINY_MODEL, vocab_size=8, pad_token_id=0)
EXTRACTOR = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)  # else padding counts in the mean
BANKS = SeamlessM4TFeatureExtractor(feature_size=10, num_mel_bins=10)
CPU = torch.device("cpu")


def settings_of(**changes):
    plain = CtcSettings(
        seed=7, budget=BatchBudget(max_clips=3), rules=TextRules(text_case="lower"), vocabulary=VOCABULARY,
        features_of=lambda wave: recognisers.features_of(wave, EXTRACTOR), frames_of=recognisers.frames_of(CONFIG),
        convolutions=convolutions(CONFIG), hidden_size=32, is_training=True,
        time_masks=SpanMasks(0.4, 5, 2), channel_masks=SpanMasks(0.2, 4, 0))
    return dataclasses.replace(plain, **changes)


def dataset(samples, texts, damage=None):
    contents = []
    for number, length in enumerate(samples):
        file = io.BytesIO()
        soundfile.write(file, sound(length / 16_000, number), 16_000, format="FLAC")
        contents.append({"bytes": file.getvalue() if number != damage else file.getvalue()[:100]})
    return datasets.Dataset.from_dict({"utterance_id": [f"clip{number}" for number in range(len(samples))], "audio": contents,
                                       "num_samples": list(samples), "text": list(texts), "speaker": [None] * len(samples)})


@pytest.fixture(scope="module")
def clips():
    return dataset(SAMPLES, TEXTS)


def wave_of(number):
    return sound(SAMPLES[number] / 16_000, number).astype(np.float32) / 32768


def place(step, *numbers, micro_batch=0, counts=True):
    return Place(step, 0, step, 1, MicroBatch(micro_batch, np.array(numbers), counts))


def assert_same(one, other):
    assert one.inputs.keys() == other.inputs.keys()
    assert all(torch.equal(one.inputs[name], other.inputs[name]) for name in one.inputs)
    assert one[2:] == other[2:]


def test_a_batch_is_what_the_extractor_and_the_tokenizer_make(clips):
    batch = CtcBatches(clips, settings_of(is_training=False))[place(1, 0, 1, 2)]
    wanted = EXTRACTOR([wave_of(number) for number in range(3)], sampling_rate=16_000, padding=True, return_tensors="np")
    np.testing.assert_allclose(batch.inputs["inputs"].numpy(), wanted["input_values"], atol=1e-5)
    assert batch.inputs["lengths"].tolist() == SAMPLES[:3]
    assert batch.inputs["num_frames"].tolist() == [49, 27, 38]
    assert batch.inputs["label_lengths"].tolist() == [2, 3, 3]
    assert batch.inputs["labels"].tolist() == [[5, 6, 0], [6, 4, 5], [7, 5, 6]]
    assert (batch.targets, batch.speech_samples, batch.samples) == (3, 37_345, 48_000)
    assert not {"time_mask", "channel_mask"} & batch.inputs.keys()


def test_frames_are_those_of_the_model(clips):
    model = Wav2Vec2ForCTC(CONFIG).eval()
    batches = CtcBatches(clips, settings_of(speeds=(0.9, 1.1)))
    for step in range(1, 4):
        batch = batches[place(step, 2)]
        assert model(batch.inputs["inputs"]).logits.shape[1] == int(batch.inputs["num_frames"])
        assert batch.inputs["time_mask"].shape[1] == int(batch.inputs["num_frames"])


def test_filter_banks_are_those_of_the_extractor(clips):
    settings = settings_of(features_of=lambda wave: recognisers.features_of(wave, BANKS), convolutions=(),
                           frames_of=lambda samples: ((samples - 400) // 160 + 1) // 2)
    batch = CtcBatches(clips, settings)[place(1, 0, 3)]
    for row, number in enumerate((0, 3)):
        wanted = BANKS(wave_of(number), sampling_rate=16_000, return_tensors="np", padding=False)["input_features"][0]
        length = int(batch.inputs["num_frames"][row])
        np.testing.assert_allclose(batch.inputs["inputs"][row, :length].numpy(), wanted[:length], atol=1e-3)
        assert not batch.inputs["inputs"][row, length:].any()
    assert batch.inputs["lengths"].tolist() == batch.inputs["num_frames"].tolist()
    assert batch.inputs["time_mask"].shape == batch.inputs["inputs"].shape[:2]


def test_clips_of_one_length_need_none(clips):
    batches = CtcBatches(clips, settings_of())
    assert "lengths" not in batches[place(1, 2)].inputs
    assert CtcBatches(clips, settings_of(pad_to_multiple_of=400))[place(1, 2)].inputs["inputs"].shape == (1, 12_400)
    assert CtcBatches(clips, settings_of(pad_to_multiple_of=400))[place(1, 2)].inputs["lengths"].tolist() == [12_345]


def test_labels_or_utterances_are_counted(clips):
    for counts_tokens, targets in ((False, 3), (True, 8)):
        batches = CtcBatches(clips, settings_of(counts_tokens=counts_tokens))
        counted, filler = (batches[place(1, 0, 1, 2, counts=counts)] for counts in (True, False))
        assert counted.targets == counted.counted_targets == targets
        assert (filler.weight, filler.counted_targets) == (0.0, 0)
        assert counted.known() == {"targets": targets, "speech_samples": 37_345, "samples": 48_000}


def test_what_is_random_follows_from_seed_step_and_number(clips):
    settings = settings_of(speeds=(0.9, 1.0, 1.1))
    batches = CtcBatches(clips, settings)
    batch = batches[place(5, 0, 1, micro_batch=2)]
    batches[place(6, 0, 1)]
    assert_same(batch, CtcBatches(clips, settings)[place(5, 0, 1, micro_batch=2)])
    others = [batches[place(6, 0, 1, micro_batch=2)], batches[place(5, 0, 1, micro_batch=3)],
              CtcBatches(clips, dataclasses.replace(settings, seed=8))[place(5, 0, 1, micro_batch=2)]]
    assert len({batch.seed, *(each.seed for each in others)}) == 4
    masks = [tuple(each.inputs["channel_mask"].flatten().tolist()) for each in (batch, *others)]
    assert len(set(masks)) == 4


def test_speeds_are_drawn_evenly_and_change_nothing_but_time(clips):
    batches = CtcBatches(clips, settings_of(speeds=(0.8, 1.0, 1.25)))
    lengths = [batches[place(step, 0)].speech_samples for step in range(1, 301)]
    values, counts = np.unique(lengths, return_counts=True)
    assert values.tolist() == [12_800, 16_000, 20_000]
    assert counts.min() > 70
    slow = next(batches[place(step, 0)] for step in range(1, 301) if lengths[step - 1] == 20_000)
    wanted = EXTRACTOR(soxr.resample(wave_of(0), 8, 10, quality="MQ"), sampling_rate=16_000)["input_values"][0]
    np.testing.assert_allclose(slow.inputs["inputs"][0].numpy(), wanted, atol=1e-3)
    assert slow.inputs["labels"].tolist() == [[5, 6]]
    assert {CtcBatches(clips, settings_of(speeds=(0.8,), is_training=False))[place(1, 0)].speech_samples} == {20_000}


def test_masks_keep_to_the_clips(clips):
    batches, shares = CtcBatches(clips, settings_of()), []
    for step in range(1, 101):
        batch = batches[place(step, 0, 3)]
        time, channel = batch.inputs["time_mask"], batch.inputs["channel_mask"]
        assert (time.shape, channel.shape) == ((2, 49), (2, 32))
        assert not time[1, 15:].any()  # 5,000 samples
        shares.append([float(time[0].float().mean()), float(time[1, :15].float().mean()), float(channel.float().mean())])
    long, short, channels = np.mean(shares, axis=0)
    assert 0.25 < long < 0.4  # spans overlap
    assert 0.25 < short < 0.67  # at least two spans of 5 in 15 frames
    assert 0.1 < channels < 0.2
    bare = CtcBatches(clips, settings_of(time_masks=SpanMasks(0.0, 5, 2), channel_masks=SpanMasks(0.0, 4, 0)))[place(1, 0)]
    assert not {"time_mask", "channel_mask"} & bare.inputs.keys()


@pytest.mark.parametrize("speeds", [(1.0,), (0.9, 1.0, 1.1), (0.5, 2.0), (0.83, 1.17)], ids=str)
def test_a_clip_that_just_fits_is_not_lost(speeds):
    """Frames at the fastest speed and seconds at the slowest are those that come out; one sample less or more does not fit."""
    slowest, fastest = min(speeds), max(speeds)
    for labels in range(1, 8):
        at_least = next(n for n in range(400, 9_000) if np.floor(n / fastest) >= 400 + 320 * (labels - 1))
        clips = dataset([at_least, at_least - 1, 9_000], ["abcabcab"[:labels]] * 2 + ["a"])
        found = CtcBatches(clips, settings_of(speeds=speeds))
        assert [each["source"] for each in found.survey.rejected] == ["clip1"]
        for step in range(1, 9):
            assert int(found[place(step, 0)].inputs["num_frames"]) >= labels
    budget = BatchBudget(max_samples=9_000)
    longest = next(n for n in range(30_000, 0, -1) if np.ceil(n / slowest) <= 9_000)
    found = CtcBatches(dataset([longest, longest + 1], ["ab"] * 2), settings_of(speeds=speeds, budget=budget))
    assert [(each["source"], each["reason"]) for each in found.survey.rejected] == [("clip1", "longer_than_a_batch")]
    assert max(found[place(step, 0)].samples for step in range(1, 9)) <= 9_000


def test_clips_left_out_are_in_no_plan():
    texts = ["ab", None, "cab", "!", "bb"]
    for is_training in (True, False):
        settings = settings_of(rules=TextRules(remove_punctuation=True), is_training=is_training)
        batches = CtcBatches(dataset(SAMPLES, texts), settings)
        assert batches.clips["utterance_id"] == ["clip0", "clip2", "clip4"]
        assert batches.num_samples.tolist() == [16_000, 12_345, 16_003]
        for plan in (batches.plan(0), batches.plan(1), batches.plan_in_order()):
            assert sorted(plan.order.tolist()) == [0, 1, 2]
        assert batches[place(1, 1)].inputs["labels"].tolist() == [[7, 5, 6]]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_clip_is_named_in_one_line(num_workers):
    batches = CtcBatches(dataset(SAMPLES, TEXTS, damage=1), settings_of(features_of=len))
    with pytest.raises(InputError, match=r"the prepared clip clip1 is damaged .* --overwrite_cache") as caught:
        list(loaded(batches, [place(1, 1), place(2, 0)], num_workers, CPU))
    assert "\n" not in str(caught.value)
