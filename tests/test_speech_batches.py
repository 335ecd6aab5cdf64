"""Prepared clips as micro-batches: what is cropped, padded, normalised and masked, and from what it follows."""

import dataclasses
import multiprocessing
import os
import sys
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import soundfile
import torch
from conftest import TINY_MODEL, write_folder
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForPreTraining

import run_preprocessing
from wavtrain import InputError
from wavtrain.batching import BatchBudget, MicroBatch, plan_epoch, plan_in_order
from wavtrain.loading import decoded, loaded, loader_processes, normalised
from wavtrain.places import Place, TrainingPlaces, validation_places
from wavtrain.speech.prepared_directory import open_prepared
from wavtrain.speech_batches import BatchSettings, SpeechBatches

SAMPLES = [16_000, 16_003, 9_000, 24_000, 5_000, 7_000]
CONVOLUTIONS = tuple(zip(Wav2Vec2Config().conv_kernel, Wav2Vec2Config().conv_stride, strict=True))
CROP = BatchSettings(seed=7, budget=BatchBudget(max_clips=3), crops=True, normalises=False, convolutions=CONVOLUTIONS,
                     mask_time_prob=0.65, mask_time_length=10, mask_time_min_masks=2)
PAD = dataclasses.replace(CROP, crops=False)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("batches") / "corpus", [samples / 16_000 for samples in SAMPLES])


@pytest.fixture(scope="module")
def clips(corpus):
    prepared = corpus.parent / "prepared"
    run_preprocessing.main(["--dataset_name", str(corpus), "--output_dir", str(prepared), "--validation_split_percentage", "0",
                            "--preprocessing_num_workers", "1"])
    clips = open_prepared(str(prepared)).load("train")
    assert clips["num_samples"] == SAMPLES
    return clips


@pytest.fixture(scope="module")
def waves(corpus):
    """What soundfile decodes."""
    return [soundfile.read(path, dtype="float32")[0] for path in sorted(corpus.iterdir())]


def place(step, *numbers, micro_batch=0, counts=True):
    return Place(step, 0, step, 1, MicroBatch(micro_batch, np.array(numbers), counts))


def values_of(batch):
    return batch.inputs["input_values"].numpy()


def start_of(piece, wave):
    """Where it begins in the wave; it is all of it that follows."""
    (starts,) = np.nonzero(wave[: len(wave) - len(piece) + 1] == piece[0])
    found = [int(start) for start in starts if np.array_equal(wave[start : start + len(piece)], piece)]
    assert len(found) == 1, found
    return found[0]


def assert_same(one, other):
    assert one.place[:4] == other.place[:4]
    assert list(one.inputs) == list(other.inputs)
    assert all(torch.equal(one.inputs[name], other.inputs[name]) for name in one.inputs)
    assert one[2:] == other[2:]


def test_padded_clips_are_whole_and_what_soundfile_decodes(clips, waves):
    batch = SpeechBatches(clips, PAD)[place(1, 3, 4, 5)]
    assert batch.inputs["input_values"].shape == (3, 24_000)
    for row, number in enumerate((3, 4, 5)):
        assert np.array_equal(values_of(batch)[row, : SAMPLES[number]], waves[number])
        assert not values_of(batch)[row, SAMPLES[number] :].any()
    assert batch.inputs["num_frames"].tolist() == [74, 15, 21]
    assert (batch.frames, batch.speech_samples, batch.samples) == (110, 36_000, 72_000)
    assert not batch.inputs["mask"][1, 15:].any()
    assert not batch.inputs["mask"][2, 21:].any()


def test_equally_long_clips_need_no_lengths(clips):
    assert "num_frames" not in SpeechBatches(clips, PAD)[place(1, 0)].inputs
    assert "num_frames" not in SpeechBatches(clips, CROP)[place(1, 0, 3, 4)].inputs


def test_cropped_clips_are_pieces_from_anywhere_as_long_as_the_shortest(clips, waves):
    speech, starts = SpeechBatches(clips, CROP), []
    for step in range(1, 81):
        values = values_of(speech[place(step, 3, 0, 1)])
        assert values.shape == (3, 16_000)
        starts.append([start_of(values[row], waves[number]) for row, number in enumerate((3, 0, 1))])
    long, shortest, nearly = np.array(starts).T
    assert set(shortest) == {0}
    assert set(nearly) == {0, 1, 2, 3}  # both ends are reached
    assert len(set(long)) > 75
    assert abs(long.mean() - 4_000) < 4 * 8_000 / np.sqrt(12 * 80)  # uniform over 8,001 places
    assert long.min() < 800
    assert long.max() > 7_200


def test_what_is_random_follows_from_seed_step_and_number(clips):
    speech = SpeechBatches(clips, CROP)
    batch = speech[place(5, 3, 0, micro_batch=2)]
    speech[place(6, 3, 0)]
    assert_same(batch, SpeechBatches(clips, CROP)[place(5, 3, 0, micro_batch=2)])
    others = [speech[place(6, 3, 0, micro_batch=2)], speech[place(5, 3, 0, micro_batch=3)],
              SpeechBatches(clips, dataclasses.replace(CROP, seed=8))[place(5, 3, 0, micro_batch=2)]]
    for other in others:
        assert not torch.equal(batch.inputs["input_values"], other.inputs["input_values"])
        assert not torch.equal(batch.inputs["mask"], other.inputs["mask"])
    assert len({each.seed for each in (batch, *others)}) == 4


def test_the_batches_width_is_rounded_down_where_clips_are_cropped(clips, waves):
    batch = SpeechBatches(clips, dataclasses.replace(CROP, pad_to_multiple_of=1_000))[place(1, 1, 3)]
    assert batch.inputs["input_values"].shape == (2, 16_000)
    assert "num_frames" not in batch.inputs
    assert 0 <= start_of(values_of(batch)[0], waves[1]) <= 3
    assert batch.samples == batch.speech_samples == 32_000


def test_and_rounded_up_where_they_are_padded(clips, waves):
    batch = SpeechBatches(clips, dataclasses.replace(PAD, pad_to_multiple_of=1_000))[place(1, 1, 2)]
    assert batch.inputs["input_values"].shape == (2, 17_000)
    assert np.array_equal(values_of(batch)[0, :16_003], waves[1])
    assert batch.inputs["num_frames"].tolist() == [49, 27]
    assert batch.inputs["mask"].shape == (2, int(PAD.frames_of(np.array(17_000))))
    assert not batch.inputs["mask"][0, 49:].any()
    assert batch.samples == 34_000


def test_a_clip_shorter_than_the_multiple_is_padded_to_it(clips, waves):
    batch = SpeechBatches(clips, dataclasses.replace(CROP, pad_to_multiple_of=8_000))[place(1, 4, 3)]
    assert batch.inputs["input_values"].shape == (2, 8_000)
    assert np.array_equal(values_of(batch)[0, :5_000], waves[4])
    assert batch.inputs["num_frames"].tolist() == [15, 15]


def test_normalisation_is_that_of_the_feature_extractor(clips, waves):
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    numbers = (3, 0, 4)
    expected = extractor([waves[number] for number in numbers], sampling_rate=16_000, padding=True, return_tensors="np")
    batch = SpeechBatches(clips, dataclasses.replace(PAD, normalises=True))[place(1, *numbers)]
    np.testing.assert_allclose(values_of(batch), expected["input_values"], rtol=1e-5, atol=1e-6)
    cropped = values_of(SpeechBatches(clips, dataclasses.replace(CROP, normalises=True))[place(1, *numbers)])
    plain = values_of(SpeechBatches(clips, CROP)[place(1, *numbers)])
    for row, number in enumerate(numbers):  # the whole clip is normalised, as there, then cropped
        start = start_of(plain[row], waves[number])
        np.testing.assert_allclose(cropped[row], expected["input_values"][row, start : start + 5_000], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [CROP, PAD], ids=["crop", "pad"])
def test_long_clips_are_cropped_to_the_budget(clips, waves, settings):
    speech = SpeechBatches(clips, dataclasses.replace(settings, budget=BatchBudget(max_clips=3, longest=8_000)))
    batches = [speech[place(step, 3, 2, 5)] for step in range(1, 9)]
    width = 7_000 if settings is CROP else 8_000
    assert {tuple(batch.inputs["input_values"].shape) for batch in batches} == {(3, width)}
    assert len({start_of(values_of(batch)[0], waves[3]) for batch in batches}) > 4
    assert all(np.array_equal(values_of(batch)[2, :7_000], waves[5]) for batch in batches)


@pytest.mark.parametrize("sizes", [{}, {"conv_kernel": (8, 4, 3), "conv_stride": (4, 3, 2), "conv_dim": (4, 4, 4)}], ids=str)
def test_frames_are_counted_as_the_model_counts_them(sizes):
    config = Wav2Vec2Config(**{**TINY_MODEL, **sizes})
    with torch.device("meta"):
        model = Wav2Vec2ForPreTraining(config)
    settings = dataclasses.replace(CROP, convolutions=tuple(zip(config.conv_kernel, config.conv_stride, strict=True)))
    lengths = np.arange(400, 3_000)
    expected = [int(each) for each in model._get_feat_extract_output_lengths(torch.from_numpy(lengths))]
    assert settings.frames_of(lengths).tolist() == expected


@pytest.mark.parametrize("settings", [CROP, PAD], ids=["crop", "pad"])
def test_places_and_targets_are_those_of_the_mask(clips, settings):
    batch = SpeechBatches(clips, settings)[place(1, 3, 4, 5)]
    mask = batch.inputs["mask"].numpy()
    assert batch.inputs["counts"].tolist() == mask.sum(1).tolist()
    assert batch.targets == mask.sum() > 0
    for row in range(3):
        assert batch.inputs["places"][row, : mask[row].sum()].tolist() == np.flatnonzero(mask[row]).tolist()


def test_settings_of_the_mask_reach_it(clips):
    many = SpeechBatches(clips, dataclasses.replace(PAD, mask_time_prob=0.9))[place(1, 3, 0)]
    few = SpeechBatches(clips, dataclasses.replace(PAD, mask_time_prob=0.01, mask_time_length=4))[place(1, 3, 0)]
    assert many.targets > 60 > 16 >= few.targets
    same_masks = SpeechBatches(clips, dataclasses.replace(PAD, require_same_masks=True))[place(1, 3, 0, 4)]
    assert len(set(same_masks.inputs["counts"].tolist())) == 1


def test_a_repetition_has_no_weight(clips):
    counted, filler = (SpeechBatches(clips, CROP)[place(1, 3, 0, counts=counts)] for counts in (True, False))
    assert (counted.weight, counted.counted_targets) == (1.0, counted.targets)
    assert (filler.weight, filler.counted_targets) == (0.0, 0)
    assert torch.equal(counted.inputs["input_values"], filler.inputs["input_values"])


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_whole_clips_and_parts_of_them_are_what_soundfile_decodes(waves, tmp_path, subtype):
    soundfile.write(tmp_path / "clip.flac", waves[3], 16_000, subtype=subtype)
    content = (tmp_path / "clip.flac").read_bytes()
    for start, stop in ((0, None), (0, 9_000), (100, 9_000)):
        assert np.array_equal(decoded("clip", content, start, stop), waves[3][start:stop])


def test_a_flac_that_holds_less_or_more_than_its_header_says_is_refused(waves, tmp_path):
    soundfile.write(tmp_path / "clip.flac", waves[3], 16_000, subtype="PCM_16")
    content = bytearray((tmp_path / "clip.flac").read_bytes())
    content[25] ^= 1  # the number of samples, a little off
    with pytest.raises(InputError, match="the prepared clip clip is damaged"):
        decoded("clip", bytes(content))
    content[25] ^= 1
    content[len(content) // 2] ^= 0xFF  # inside a frame: its checksum is wrong
    with pytest.raises(InputError, match="the prepared clip clip is damaged"):
        decoded("clip", bytes(content))


def test_the_part_that_is_kept_is_normalised_with_the_whole_clip(waves):
    assert np.array_equal(normalised(waves[3], 100, 9_000), normalised(waves[3])[100:9_000])


def places_of_three_updates():
    return [Place(step, 0, step - 1, 2, MicroBatch(number, np.array(numbers), True))
            for step, both in enumerate([((0, 1), (2, 3)), ((4, 5), (0, 2)), ((3,), (1, 5))], start=1)
            for number, numbers in enumerate(both)]


def test_any_number_of_loader_workers_gives_the_same_updates(clips):
    speech = SpeechBatches(clips, CROP)
    updates = list(loaded(speech, places_of_three_updates(), 0, CPU))
    assert [len(update) for update in updates] == [2, 2, 2]
    expected = [speech[each] for each in places_of_three_updates()]
    for num_workers in (0, 1, 2):
        batches = [batch for update in loaded(speech, places_of_three_updates(), num_workers, CPU) for batch in update]
        for batch, wanted in zip(batches, expected, strict=True):
            assert_same(batch, wanted)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda _: b"RIFF"], ids=["cut", "gone"])
def test_a_damaged_clip_is_named_in_one_line(clips, num_workers, damage):
    contents = [audio["bytes"] for audio in clips["audio"]]
    contents[2] = damage(contents[2])
    columns = {name: clips[name] for name in ("utterance_id", "num_samples", "speaker")}
    damaged = datasets.Dataset.from_dict({**columns, "audio": [{"bytes": content} for content in contents]})
    with pytest.raises(InputError, match=r"the prepared clip 002.flac is damaged .* --overwrite_cache") as caught:
        list(loaded(SpeechBatches(damaged, CROP), places_of_three_updates(), num_workers, CPU))
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_plans_are_those_of_batching(clips):
    speech, lengths = SpeechBatches(clips, CROP), np.array(SAMPLES)
    for mine, wanted in ((speech.plan(3), plan_epoch(lengths, 7, 3, CROP.budget)),
                         (speech.plan_in_order(), plan_in_order(lengths, CROP.budget))):
        assert np.array_equal(mine.order, wanted.order)
        assert np.array_equal(mine.starts, wanted.starts)


def key(each):
    return (*each[:3], each.micro_batch.number, tuple(each.micro_batch.clips.tolist()))


def small_plan(epoch):
    return plan_epoch(np.arange(1_000, 1_022), 3, epoch, BatchBudget(max_clips=2))  # 11 micro-batches


def test_a_run_goes_on_from_any_place_and_over_the_ends_of_epochs():
    whole = list(TrainingPlaces(small_plan, 4, (0, 1), last_step=8))
    assert [(each.step, each.epoch, each.update) for each in whole if each.micro_batch.number == 0] == [
        (1, 0, 0), (2, 0, 1), (3, 0, 2), (4, 1, 0), (5, 1, 1), (6, 1, 2), (7, 2, 0), (8, 2, 1)]
    assert [sum(each.step == step for each in whole) for step in range(1, 9)] == [4, 4, 3, 4, 4, 3, 4, 4]
    for done in (2, 3, 5):
        last = [each for each in whole if each.step == done][-1]
        rest = TrainingPlaces(small_plan, 4, (0, 1), 8, step=done + 1, epoch=last.epoch, update=last.update + 1)
        assert [key(each) for each in rest] == [key(each) for each in whole if each.step > done]


@pytest.mark.parametrize("num_processes", [2, 4])
def test_processes_share_what_one_would_do(num_processes):
    whole = sorted(key(each) for each in TrainingPlaces(small_plan, 4, (0, 1), 6))
    shares = [list(TrainingPlaces(small_plan, 4, (process, num_processes), 6)) for process in range(num_processes)]
    assert sorted(key(each) for share in shares for each in share if each.micro_batch.counts) == whole
    for step in range(1, 7):
        rounds = {sum(each.step == step for each in share) for share in shares}
        assert len(rounds) == 1  # collectives meet
        assert {each.rounds for share in shares for each in share if each.step == step} == rounds


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_validation_is_the_same_on_any_number_of_processes(num_processes):
    plan = plan_in_order(np.arange(1_000, 1_022), BatchBudget(max_clips=2))
    shares = [validation_places(plan, (process, num_processes)) for process in range(num_processes)]
    assert len({len(share) for share in shares}) == 1
    counted = {each.micro_batch.number: each.micro_batch.clips.tolist() for share in shares for each in share
               if each.micro_batch.counts}
    assert counted == {number: plan.clips_of(number).tolist() for number in range(11)}
    assert {each.step for share in shares for each in share} == {0}


@pytest.mark.parametrize(("device", "cores", "processes", "expected"), [
    ("cpu", 64, 1, 1), ("cuda", 16, 1, 4), ("cuda", 16, 8, 1), ("cuda", 64, 8, 4), ("cuda", 24, 8, 2), ("cuda", 1, 8, 1)])
def test_as_many_processes_load_as_the_device_wants_and_the_cores_allow(device, cores, processes, expected, monkeypatch):
    monkeypatch.setattr("wavtrain.loading.NUM_CORES", cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert loader_processes(torch.device(device)) == expected


class Parents(torch.utils.data.Dataset):
    """Of the processes that load."""

    def __getitem__(self, place):
        return SimpleNamespace(place=place, parent=os.getppid())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is left to torch")
def test_loaders_are_forked_whatever_python_does_by_itself():
    """From 3.14 on it does not: they would not have what this process has, nor see at once that it is gone."""
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        ((batch,),) = loaded(Parents(), [SimpleNamespace(rounds=1)], 1, CPU)
    finally:
        multiprocessing.set_start_method(None, force=True)
    assert batch.parent == os.getpid()
