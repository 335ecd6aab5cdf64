"""What no one thought of, by hypothesis: whatever stands in a file or a flag, it is used, or refused in one way."""

import json

import numpy as np
import pytest
from conftest import sound
from corpora import MANY, write_clips
from hypothesis import given, settings
from hypothesis import strategies as st

import run_preprocessing
from wavtrain import InputError
from wavtrain.batching import BatchBudget, plan_epoch, updates_of
from wavtrain.masking import FEWEST, span_mask
from wavtrain.recognition.lexicons import spellings
from wavtrain.recognition.transcripts import CHOICES, TextRules, normalised
from wavtrain.recognition.vocabularies import build_vocabulary, read_vocabulary
from wavtrain.speech.clips import Clip, ClipLimits, clips_of, encode
from wavtrain.speech.rows import Columns, Rejection, Row
from wavtrain.speech.table_corpora import rows_of_table

SOME = settings(MANY, max_examples=60)
VALUES = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
                      max_leaves=8)
NAMES = st.sampled_from(["file_name", "audio_filepath", "wav", "text", "offset", "duration", "start", "stop", "end", "id"])
PATHS = st.sampled_from(["a.flac", "../a.flac", "/etc/passwd", "", "a.flac/", "."])
RECORDS = st.lists(st.dictionaries(NAMES, VALUES | PATHS, max_size=5), max_size=4)


def tried(call):
    """What it gives, and the one line that it refuses with."""
    try:
        return call(), ""
    except InputError as error:
        return None, str(error)


def used_or_refused(path):
    rows, refusal = tried(lambda: list(rows_of_table(str(path), Columns())))
    if rows is None:
        assert path.name in refusal
        return
    assert all(isinstance(row, (Row, Rejection)) for row in rows)
    assert all(row.audio.startswith(str(path.parent)) for row in rows if isinstance(row, Row))


@MANY
@given(records=RECORDS, ending=st.sampled_from(["jsonl", "json"]))
def test_a_table_of_any_values_gives_rows_and_rejections(tmp_path, records, ending):
    path = write_clips(tmp_path, "a.flac") / f"t.{ending}"
    path.write_text("\n".join(map(json.dumps, records)) if ending == "jsonl" else json.dumps(records))
    used_or_refused(path)


@MANY
@given(content=st.binary(max_size=60) | st.text(alphabet="file_name,\t\n\"a.flac\r|0", max_size=60).map(str.encode),
       ending=st.sampled_from(["csv", "tsv", "jsonl", "json"]))
def test_a_table_of_any_bytes_gives_rows_and_rejections(tmp_path, content, ending):
    (tmp_path / f"t.{ending}").write_bytes(b"file_name,text\n" * (ending == "csv" and len(content) % 2) + content)
    used_or_refused(tmp_path / f"t.{ending}")


@SOME
@given(seconds=st.floats(0.03, 1.0), start=st.floats(0, 1.2), length=st.none() | st.floats(1e-6, 1.2),
       least=st.floats(0, 0.5), most=st.floats(0.025, 1.0), long_audio=st.sampled_from(["drop", "crop", "split"]))
def test_clips_keep_the_limits_and_their_samples(seconds, start, length, least, most, long_audio):
    limits = ClipLimits(min(least, most), max(least, most), long_audio)
    audio = encode(sound(seconds))
    row = Row("a", audio, "a", start=start, stop=None if length is None else start + length)
    clips = list(clips_of(row, audio, limits))
    assert clips
    kept = [clip for clip in clips if isinstance(clip, Clip)]
    longest = round(limits.max_duration_in_seconds * 16_000)
    assert all(400 <= clip.num_samples <= longest + 1 for clip in kept)
    assert sum(clip.num_samples for clip in kept) <= round(seconds * 16_000)
    assert len({clip.utterance_id for clip in kept}) == len(kept)


@MANY
@given(frames=st.lists(st.integers(1, 300), min_size=1, max_size=6), probability=st.floats(0, 1), length=st.integers(1, 400),
       min_spans=st.integers(0, 3), same=st.booleans(), seed=st.integers(0, 2**32))
def test_masks_stay_in_their_clips(frames, probability, length, min_spans, same, seed):
    masks = [span_mask(np.array(frames), probability, length, min_spans, np.random.default_rng(seed), same) for _ in range(2)]
    assert np.array_equal(*masks)
    counts = masks[0].sum(axis=1)
    assert masks[0].shape == (len(frames), max(frames))
    assert not any(row[num:].any() for row, num in zip(masks[0], frames, strict=True))
    assert all(count == 0 or count >= FEWEST for count in counts)
    assert all(count == 0 for count, num in zip(counts, frames, strict=True) if num < length)
    assert not same or len(set(counts[counts > 0])) <= 1


@MANY
@given(lengths=st.lists(st.integers(400, 320_000), min_size=1, max_size=80), max_clips=st.none() | st.integers(1, 9),
       max_samples=st.integers(400, 10**6), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 5),
       processes=st.sampled_from([1, 2, 4]))
def test_a_plan_has_every_clip_once_whatever_the_processes(lengths, max_clips, max_samples, seed, epoch, processes):
    lengths = np.array(lengths)
    plan = plan_epoch(lengths, seed, epoch, BatchBudget(max_clips, max_samples))
    heard = [list(updates_of(plan, 4, rank, processes)) for rank in range(processes)]
    batches = [each for updates in heard for update in updates for each in update if each.counts]
    assert sorted(np.concatenate([each.clips for each in batches])) == list(range(len(lengths)))
    assert {len(update) for updates in zip(*heard, strict=True) for update in updates} <= set(range(1, 5))
    for batch in batches:
        padded = len(batch.clips) * min(lengths[batch.clips].max(), max_samples)
        assert padded <= max_samples
        assert max_clips is None or len(batch.clips) <= max_clips


@MANY
@given(text=st.text(max_size=30), rules=st.builds(
    TextRules, **{name: st.sampled_from(each) for name, each in CHOICES.items()}, remove_punctuation=st.booleans(),
    chars_to_ignore=st.lists(st.text(min_size=1, max_size=2), max_size=2).map(tuple)))
def test_any_text_becomes_words_on_one_line(text, rules):
    once = normalised(text, rules)
    assert once == " ".join(once.split())
    once.encode()  # no half surrogates
    assert len(once.splitlines()) <= 1


@SOME
@given(content=st.binary(max_size=40) | VALUES.map(json.dumps).map(str.encode), name=st.sampled_from(["v.json", "v.txt"]))
def test_a_vocabulary_of_any_content_is_one_or_is_refused(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"--vocabulary .*v\.(json|txt)") as caught:  # nothing so small has all it takes
        read_vocabulary(str(tmp_path / name), "--vocabulary", "letters")
    assert "\n" not in str(caught.value)


@SOME
@given(content=st.binary(max_size=60))
def test_a_lexicon_or_language_model_of_any_bytes(tmp_path, content):
    vocabulary = build_vocabulary(["ab c"], "letters")
    for name in ("lexicon.txt", "lm.arpa"):
        path = tmp_path / name
        path.write_bytes(b"\x1f\x8b" * (name == "lm.arpa" and len(content) % 2) + content)
        paths = (str(path), None) if name == "lexicon.txt" else (None, str(path))
        found, refusal = tried(lambda paths=paths: spellings(vocabulary, *paths))
        assert found or name in refusal


@SOME
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace"))
       | st.dictionaries(st.sampled_from(["dataset_name", "output_dir", "streaming", "max_duration_in_seconds"]), VALUES).map(
           json.dumps).map(str.encode))
def test_a_config_of_any_content_is_one_or_is_refused(tmp_path, content):
    (tmp_path / "c.yaml").write_bytes(content)
    words = ["--config", str(tmp_path / "c.yaml"), "--dataset_name", "a", "--output_dir", "b"]
    args, refusal = tried(lambda: run_preprocessing.parse_arguments(words))
    assert "\n" not in refusal
    assert len(refusal) < 1000
    assert refusal or (args.dataset_name, args.output_dir) == (["a"], "b")
