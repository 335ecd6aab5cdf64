"""Files from others: none runs code, none leads outside its folder, none takes the memory; what is secret stays so."""

import gzip
import io
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import subprocess
import sys
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import soundfile
import torch
from conftest import ROOT, write_folder, write_model
from corpora import (
    audio_bytes,
    audio_table,
    outcome,
    rows_of,
    utterances,
    with_audio_feature,
    write_clips,
    write_parquet,
    write_table,
)
from training_runs import SMALL, checkpoint, column, refusal, words_of

import run_ctc_decoding
import run_ctc_finetuning
import run_preprocessing
import run_wav2vec2_pretraining_no_trainer as pretraining
from wavtrain import InputError, preflight
from wavtrain.loading import PlannedClips, budget_of
from wavtrain.recognition.lexicons import KENLM_BINARY, refuse_deadly, refuse_odd_counts, spellings
from wavtrain.recognition.vocabularies import build_vocabulary
from wavtrain.run_directory import is_like, read_progress
from wavtrain.speech import unfolding
from wavtrain.speech.audio_paths import is_inside
from wavtrain.speech.prepared_directory import open_prepared
from wavtrain.speech.rows import Rejection
from wavtrain.speech.shard_checksums import checksum
from wavtrain.training_run import NOTHING_DONE

pytestmark = pytest.mark.usefixtures("quick_runs")
TOKEN = "hf_secret0123"
GIANT = 0x7EFFFFFF


class Intruder:
    """A pickle that makes a file when it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def pickles(path):
    """Of the three kinds that torch reads."""
    old, new = (path.parent / name for name in ("old.bin", "new.bin"))
    torch.save(Intruder(path), old, _use_new_zipfile_serialization=False)
    torch.save(Intruder(path), new)
    return {"pickle": pickle.dumps(Intruder(path)), "old": old.read_bytes(), "new": new.read_bytes()}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A prepared corpus with text, a model, a run of each training script with a checkpoint."""
    folder = tmp_path_factory.mktemp("trust")
    names = "".join(f"{number:03d}.flac,ab c\n" for number in range(4))
    write_table(write_folder(folder / "corpus", [1.0, 1.5, 2.0, 1.2]) / "metadata.csv", f"file_name,text\n{names}")
    write_model(folder / "model")
    run_preprocessing.main(words_of({"dataset_name": folder / "corpus", "output_dir": folder / "prepared",
                                     "preprocessing_num_workers": 1}))
    flags = {**SMALL, "dataset_name": folder / "prepared", "max_train_steps": 1}
    pretraining.main(words_of({**flags, "model_name_or_path": folder / "model", "output_dir": folder / "pretrained"}))
    run_ctc_finetuning.main(words_of({**flags, "config_name": folder / "model", "output_dir": folder / "recogniser"}))
    return folder


def argv(places, output_dir, **flags):
    return words_of({**SMALL, "dataset_name": places / "prepared", "output_dir": output_dir, **flags})


def ways_in(places, model, output_dir):
    """Every script that reads weights."""
    return [(pretraining, argv(places, output_dir, init_from=model)),
            (run_ctc_finetuning, argv(places, output_dir, model_name_or_path=model)),
            (run_ctc_decoding, words_of({"dataset_name": places / "prepared", "model_name_or_path": model,
                                         "output_dir": output_dir, "dataloader_num_workers": 0}))]


@pytest.mark.parametrize("kind", ["pickle", "old", "new"])
def test_weights_that_are_a_pickle_run_no_code(places, tmp_path, kind):
    model = shutil.copytree(places / "recogniser", tmp_path / "model", ignore=shutil.ignore_patterns("checkpoints"))
    content = pickles(tmp_path / "intruded")[kind]
    (model / "model.safetensors").write_bytes(content)
    for script, words in ways_in(places, model, tmp_path / "out"):
        refusal(script, words)
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    for script, words in ways_in(places, model, tmp_path / "out"):
        assert "could run code" in refusal(script, words)
    assert not (tmp_path / "intruded").exists()
    pickle.loads(pickles(tmp_path / "intruded")["pickle"]).close()  # that it can
    assert (tmp_path / "intruded").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl"])
def test_a_checkpoint_runs_no_code(places, tmp_path, name):
    run = shutil.copytree(places / "pretrained", tmp_path / "run")
    for content in pickles(tmp_path / "intruded").values():
        (checkpoint(run, 1) / name).write_bytes(content)
        with suppress(InputError):  # what only holds random states may be passed over
            pretraining.main(argv(places, run, model_name_or_path=places / "model", resume_from_checkpoint="latest"))
        assert not (tmp_path / "intruded").exists()


@pytest.mark.parametrize(("name", "values"), [
    ("config.json", {"model_type": "intruder", "auto_map": {"AutoConfig": "intruder.Config"}}),
    ("preprocessor_config.json", {"feature_extractor_type": "Other", "auto_map": {"AutoFeatureExtractor": "intruder.Other"}}),
    ("tokenizer_config.json", {"tokenizer_class": "Other", "auto_map": {"AutoTokenizer": ["intruder.Other", None]}}),
])
def test_code_beside_a_model_is_not_run_unasked(places, tmp_path, name, values):
    model = shutil.copytree(places / "recogniser", tmp_path / "model", ignore=shutil.ignore_patterns("checkpoints"))
    (model / "intruder.py").write_text(f"open({str(tmp_path / 'intruded')!r}, 'w')\n")
    content = json.loads((model / name).read_text())
    (model / name).write_text(json.dumps({**content, **values}))
    for script, words in ways_in(places, model, tmp_path / "out"):
        if name == "tokenizer_config.json" and script is not run_ctc_decoding:
            continue  # which needs no tokenizer
        refusal(script, words)
    assert not (tmp_path / "intruded").exists()


def test_code_in_a_corpus_is_not_run(tmp_path):
    corpus = write_clips(tmp_path / "corpus", "a.flac")
    (corpus / "corpus.py").write_text(f"open({str(tmp_path / 'intruded')!r}, 'w')\n")
    (corpus / "state.pkl").write_bytes(pickle.dumps(Intruder(tmp_path / "intruded")))
    assert outcome(rows_of(corpus)) == [("a.flac", None)]
    for content in (pickle.dumps(Intruder(tmp_path / "intruded")), b"PAR1" + bytes(100) + b"PAR1"):
        (corpus / "x.parquet").write_bytes(content)
        with pytest.raises(InputError):
            rows_of(corpus)
    write_parquet(corpus, utterances(), "x.parquet")
    (corpus / "corpus.py").unlink()
    (corpus / "README.md").write_text("---\n!!python/object/apply:os.mkdir [intruded]\n---\n")
    with pytest.raises(InputError, match="could not determine a constructor"):
        rows_of(corpus)
    assert not (tmp_path / "intruded").exists()


@pytest.mark.parametrize("files", ["{}/elsewhere/*.parquet", "../elsewhere/*.parquet"])
def test_a_description_names_no_files_elsewhere(tmp_path, files):
    write_parquet(tmp_path / "elsewhere", utterances(), "x.parquet")
    corpus = write_parquet(tmp_path / "corpus", utterances(), "x.parquet")
    (corpus / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {files.format(tmp_path)}\n---\n")
    with pytest.raises(InputError, match=r"leads outside .*corpus; --audio_root DIR allows"):
        rows_of(corpus)
    assert len(rows_of(corpus, audio_root=str(tmp_path))) == 3


@pytest.mark.parametrize("name", ["../elsewhere.arrow", "{}/elsewhere.arrow"])
def test_a_dataset_on_disk_names_no_files_elsewhere(tmp_path, name):
    corpus = tmp_path / "corpus"
    with_audio_feature(utterances()).save_to_disk(corpus)
    state = json.loads((corpus / "state.json").read_text())
    shutil.move(corpus / state["_data_files"][0]["filename"], tmp_path / "elsewhere.arrow")
    (corpus / "state.json").write_text(json.dumps({**state, "_data_files": [{"filename": name.format(tmp_path)}]}))
    with pytest.raises(InputError, match=r"elsewhere.arrow: leads outside"):
        rows_of(corpus)


@pytest.fixture
def prepared(places, tmp_path):
    """A copy of the prepared speech whose files of a split may be written anew, checksums and all."""
    folder = shutil.copytree(places / "prepared", tmp_path / "prepared")

    def rewrite(name, content):
        path, sums = folder / "train" / name, folder / "train" / "checksums.json"
        path.write_text(content)
        sums.write_text(json.dumps({**json.loads(sums.read_text()), name: checksum(str(path))}))

    return folder, rewrite


@pytest.mark.parametrize("name", ["../elsewhere.arrow", "{}/elsewhere.arrow", "/dev/zero", "data-0000-00000.arrow/../../x"])
def test_prepared_speech_names_no_files_elsewhere(prepared, tmp_path, name):
    folder, rewrite = prepared
    shutil.copy(folder / "train" / "data-0000-00000.arrow", tmp_path / "elsewhere.arrow")
    state = json.loads((folder / "train" / "state.json").read_text())
    rewrite("state.json", json.dumps({**state, "_data_files": [{"filename": name.format(tmp_path)}]}))
    with pytest.raises(InputError, match=r"state\.json names .*, which is not beside it: prepare the corpus again"):
        open_prepared(str(folder)).load("train")


@pytest.mark.parametrize(("name", "content"), [
    ("state.json", "[]"), ("state.json", "{}"), ("state.json", '{"_data_files": [{}]}'), ("state.json", '{"_data_files": 3}'),
    ("state.json", '{"_data_files": [{"filename": 3}]}'), ("state.json", "\0"), ("dataset_info.json", "{"),
    ("dataset_info.json", "[]"), ("dataset_info.json", '{"features": {"audio": {"_type": "Intruder"}}}'),
    ("dataset_info.json", '{"features": {"audio": {"dtype": "int8", "_type": "Value"}}}')])
def test_odd_descriptions_of_prepared_speech_are_one_line(prepared, name, content):
    folder, rewrite = prepared
    rewrite(name, content)
    with pytest.raises(InputError, match="prepare the corpus again") as raised:
        open_prepared(str(folder)).load("train")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", ["[]", "{}", "3", *(f'{{"fingerprint": "x", "splits": {splits}}}' for splits in (
    '3', '["train"]', '{"train": 3}', '{"train": {}}'))])
def test_odd_reports_of_prepared_speech_are_one_line(prepared, content):
    (prepared[0] / "preparation.json").write_text(content)
    with pytest.raises(InputError, match=r"preparation\.json: is damaged"):
        open_prepared(str(prepared[0]))


def test_a_prepared_clip_unfolds_to_its_length_and_no_further(places):
    speech = open_prepared(str(places / "prepared")).load("train")
    longer = io.BytesIO()
    soundfile.write(longer, np.zeros(16_000 * 600, np.int16), 16_000, format="FLAC")
    row = {**speech[0], "audio": {"bytes": longer.getvalue()}}
    clips = PlannedClips(datasets.Dataset.from_list([row]), np.array([row["num_samples"]]), 0, budget_of(1, None))
    place = SimpleNamespace(micro_batch=SimpleNamespace(clips=np.array([0])))
    assert [len(wave) for wave in clips.opened(place)[1]] == [row["num_samples"]]


def test_paths_in_a_dataset_stay_in_it(tmp_path):
    write_clips(tmp_path, "a.flac")
    paths = [{"bytes": None, "path": path} for path in (str(tmp_path / "a.flac"), "../a.flac", "/dev/zero")]
    corpus = write_parquet(tmp_path / "corpus", audio_table(*paths))
    for streaming in (False, True):
        assert {row.reason for row in rows_of(corpus, streaming=streaming)} == {"outside_folder"}


@pytest.mark.parametrize("name", ["metadata.csv", "train.csv", "train", "1-2.trans.txt"])
def test_tables_and_splits_that_are_links_stay_in_the_corpus(tmp_path, name):
    corpus = write_clips(tmp_path / "corpus", "a.flac")
    write_clips(tmp_path / "other", "b.flac")
    write_table(tmp_path / "secret", "root:x:0:0\n")
    (corpus / name).symlink_to("../other" if name == "train" else "../secret")
    with pytest.raises(InputError, match="leads outside") as raised:
        rows_of(corpus)
    assert "root" not in str(raised.value).replace("--audio_root", "").replace(str(tmp_path), "")


@pytest.mark.parametrize("root", ["{}/elsewhere", "../elsewhere", "link"])
def test_the_root_of_a_fairseq_table_is_in_its_folder_or_allowed(tmp_path, root):
    write_clips(tmp_path / "elsewhere", "a.flac")
    table = write_table(tmp_path / "manifests" / "train.tsv", f"{root.format(tmp_path)}\na.flac\t800\n")
    (tmp_path / "manifests" / "link").symlink_to("../elsewhere")
    with pytest.raises(InputError, match=r"line 1: .* --audio_root .*(elsewhere|link) allows it"):
        rows_of(table)
    for allowed in (tmp_path / "elsewhere", tmp_path, "/"):
        assert outcome(rows_of(table, audio_root=str(allowed))) == [("a.flac", None)]
    moved = write_clips(tmp_path / "moved", "a.flac")
    (rows,) = rows_of(table, audio_root=str(moved))
    assert rows.audio == str(moved / "a.flac")


def test_a_snapshot_of_the_hub_is_links_into_its_own_repository_alone(tmp_path):
    repository = tmp_path / "hub" / "datasets--x--y"
    blob = write_clips(repository / "blobs", "0123.flac") / "0123.flac"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "good.flac").symlink_to(os.path.relpath(blob, snapshot))
    (snapshot / "bad.flac").symlink_to(write_clips(tmp_path / "elsewhere", "a.flac") / "a.flac")
    assert is_inside(str(snapshot / "good.flac"), str(snapshot))
    assert not is_inside(str(snapshot / "bad.flac"), str(snapshot))


def test_names_are_harmless_wherever_they_are_printed(tmp_path):
    corpus = write_clips(tmp_path / "corpus", "ok.flac")
    soundfile.write(corpus / "good\n\x1b[31m.wav", np.sin(np.arange(8000) / 9) / 2, 16_000)
    for name in (b"bad\n\x1b]0;title\x07.wav", b"\xff\xfe.wav", "\u202e\x9b31m.wav".encode()):
        (corpus / os.fsdecode(name)).write_bytes(b"no audio")
    words = [sys.executable, "run_preprocessing.py", "--dataset_name", corpus, "--output_dir", tmp_path / "out",
             "--preprocessing_num_workers", "1"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == 0
    assert not {b"\x1b", b"\x07", b"\x9b"} & {bytes([byte]) for byte in done.stdout + done.stderr}
    lines = (tmp_path / "out" / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    reasons = [json.loads(line)["reason"] for line in lines]
    assert sorted(reasons) == ["too_short", *["unreadable"] * 3]


@pytest.mark.parametrize("words", [["--hub_tokn", TOKEN], [f"--hub_tokn={TOKEN}"], ["--hub_token", TOKEN]])
def test_the_token_is_in_no_error_line(words):
    with pytest.raises(InputError) as raised:
        pretraining.main(["--dataset_name", "/nowhere", "--output_dir", "x", "--model_name_or_path", "y", *words])
    assert TOKEN not in str(raised.value)


def test_the_token_of_a_config_is_in_no_error_line(tmp_path):
    (tmp_path / "c.yaml").write_text(f"hub_token: [{TOKEN}]\n")
    assert TOKEN not in refusal(pretraining, ["--config", str(tmp_path / "c.yaml"), "--dataset_name", "/nowhere"])


@pytest.mark.parametrize(("name", "value"), [
    ("step", "x"), ("step", -1), ("epoch", None), ("update", []), ("samples_heard", float("inf")), ("skipped_updates", True),
    ("arguments", []), ("identity", "x")])
def test_progress_is_made_of_counts_and_tables(places, name, value):
    progress = read_progress(str(checkpoint(places / "pretrained", 1)))
    example = {**NOTHING_DONE, "arguments": {}, "identity": {}}
    assert is_like(progress, example)
    assert not is_like({**progress, name: value}, example)


def giant_flac():
    """A good file whose header promises 2**36 - 1 samples."""
    content = bytearray(audio_bytes("61-70-0000"))
    content[21] |= 0x0F
    content[22:26] = b"\xff" * 4
    return bytes(content)


def test_giant_lengths_and_bombs_take_no_memory(tmp_path):
    corpus = write_clips(tmp_path / "corpus")
    (corpus / "giant.flac").write_bytes(giant_flac())
    soundfile.write(corpus / "silence.flac", np.zeros(16_000 * 3600, np.int16), 16_000)
    soundfile.write(corpus / "good.wav", np.sin(np.arange(8000) / 9) / 2, 16_000)
    head = b"RIFF", GIANT, b"WAVEfmt ", 16, 1, 1, 16_000, 32_000, 2, 16, b"data", GIANT
    (corpus / "giant.wav").write_bytes(struct.pack("<4sI8sIHHIIHH4sI", *head))
    words = [sys.executable, "run_preprocessing.py", "--dataset_name", corpus, "--output_dir", tmp_path / "out",
             "--preprocessing_num_workers", "1"]
    limit = 4 << 30  # of addresses, most of them libraries
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=100,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    assert done.returncode == 0, done.stderr
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert {"giant.flac", "giant.wav", "silence.flac"} <= {os.path.basename(each["source"]) for each in rejected}


def one_clip(content):
    return audio_table({"bytes": content, "path": None})


def arrow_bomb(path, new=pa.ipc.new_stream, codec="zstd"):
    table = one_clip(bytes(2 << 20))
    with new(path, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(("name", "write"), [
    ("x.parquet", lambda path: pyarrow.parquet.write_table(one_clip(bytes(2 << 20)), path, compression="zstd")),
    ("x.arrow", arrow_bomb), ("x.arrow", partial(arrow_bomb, codec="lz4")),
    ("x.arrow", partial(arrow_bomb, new=pa.ipc.new_file))])
@pytest.mark.parametrize("streaming", [False, True])
def test_tables_that_unfold_to_gigabytes_are_refused_before_they_do(tmp_path, monkeypatch, name, write, streaming):
    """Of megabytes here. Those who are as large when packed are not meant."""
    monkeypatch.setattr(unfolding, "ALLOWED_BYTES", 1 << 20)
    monkeypatch.setattr(datasets, "load_dataset", None)
    (tmp_path / "corpus").mkdir()
    write(tmp_path / "corpus" / name)
    with pytest.raises(InputError, match=rf"corpus/{name}: [\d,]+ bytes in it unfold to 2,097,"):
        rows_of(tmp_path / "corpus", streaming=streaming)


def test_tables_that_are_as_large_when_packed_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(unfolding, "ALLOWED_BYTES", 1 << 20)
    corpus = write_parquet(tmp_path / "corpus", one_clip(os.urandom(2 << 20)), "x.parquet")
    assert len(rows_of(corpus)) == 1
    arrow_bomb(tmp_path / "small.arrow")
    monkeypatch.undo()
    unfolding.refuse_bombs(str(tmp_path))


def test_a_dataset_on_disk_may_be_a_bomb_too(tmp_path, monkeypatch):
    monkeypatch.setattr(unfolding, "ALLOWED_BYTES", 1 << 20)
    monkeypatch.setattr(datasets, "load_from_disk", None)
    with_audio_feature(utterances()).save_to_disk(tmp_path / "corpus")
    arrow_bomb(next((tmp_path / "corpus").glob("*.arrow")))
    with pytest.raises(InputError, match="unfold to 2,097,"):
        rows_of(tmp_path / "corpus")


@pytest.mark.parametrize("ending", ["jsonl.gz", "tsv.xz", "csv.zip", "tar"])
def test_packed_tables_are_not_opened(tmp_path, ending):
    (tmp_path / f"x.{ending}").write_bytes(gzip.compress(b'{"file_name": "a.flac"}\n'))
    with pytest.raises(InputError, match="neither audio nor a manifest"):
        rows_of(tmp_path / f"x.{ending}")


def die(path):
    os.kill(os.getpid(), signal.SIGKILL)


def complain(path):
    raise RuntimeError("no room")


def test_a_binary_over_which_kenlm_dies_is_tried_by_another_process(tmp_path):
    (tmp_path / "lm.bin").write_bytes(KENLM_BINARY + b" format version 5\n")
    with pytest.raises(InputError, match=r"--lm_path .*lm\.bin: KenLM crashes over it: it is damaged"):
        refuse_deadly(str(tmp_path / "lm.bin"), die)
    with pytest.raises(RuntimeError, match="no room"):
        refuse_deadly(str(tmp_path / "lm.bin"), complain)
    refuse_deadly(str(tmp_path / "lm.bin"), os.stat)
    (tmp_path / "lm.arpa").write_text("text")
    with pytest.raises(InputError, match=r"has no .1-grams"):  # text is not tried
        refuse_deadly(str(tmp_path / "lm.arpa"), die)


@pytest.mark.parametrize("content", [b"\\data\\\nngram 1=5\n\n\\1-grams:\n" + b"x" * 10**8, b"\n" * 10**8])
def test_a_zipped_bomb_is_no_language_model(tmp_path, content):
    path = tmp_path / "bomb.arpa.gz"
    path.write_bytes(gzip.compress(content, 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"bomb\.arpa\.gz"):
        spellings(build_vocabulary(["ab c"], "letters"), None, str(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


@pytest.mark.parametrize("count", ["-5", "99999999999", "9" * 5000, "many", ""])
def test_counts_that_kenlm_would_die_of(tmp_path, count):
    path = tmp_path / "lm.arpa"
    path.write_text(f"\\data\\\nngram 1={count}\n\n\\1-grams:\n-1\tab\n\n\\end\\\n")
    with pytest.raises(InputError, match="promises"):
        refuse_odd_counts(str(path))


@pytest.mark.parametrize(("name", "value", "reason"), [
    ("nan", np.nan, "non_finite"), ("inf", np.inf, "non_finite"), ("big", 1e30, "out_of_range"), ("zero", 0, "silent"),
    ("constant", 0.5, "silent")])
def test_samples_that_are_no_speech_are_rejected_and_counted(tmp_path, name, value, reason):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    soundfile.write(corpus / "good.wav", np.sin(np.arange(8000) / 9) / 2, 16_000)
    soundfile.write(corpus / f"{name}.wav", np.full(8000, value, np.float32), 16_000, subtype="FLOAT")
    report = run_preprocessing.main(words_of({"dataset_name": corpus, "output_dir": tmp_path / "out",
                                              "preprocessing_num_workers": 1}))
    assert {each: count["clips"] for each, count in report["rejected"].items()} == {reason: 1}


@pytest.mark.parametrize("script", [pretraining, run_ctc_finetuning])
def test_a_gradient_that_is_not_finite_is_skipped_and_counted(places, tmp_path, monkeypatch, script):
    forward, calls = torch.nn.LayerNorm.forward, []

    def sometimes_nan(self, values):
        calls.extend([self] * self.training)
        return forward(self, values) * (float("nan") if calls == [self] else 1.0)

    monkeypatch.setattr(torch.nn.LayerNorm, "forward", sometimes_nan)
    monkeypatch.setattr(preflight, "timed_micro_batches", lambda run, loss_of: None)  # the first pass is to be the run's
    name = "model_name_or_path" if script is pretraining else "config_name"
    script.main(argv(places, tmp_path / "run", **{name: places / "model", "max_train_steps": 3}))
    assert column(tmp_path / "run", "skipped_updates") == [1, 1, 1]


def test_paths_in_a_table_stay_in_its_folder(tmp_path):
    corpus = write_clips(tmp_path / "corpus", "a.flac")
    names = ["../x.flac", "/etc/passwd", "/dev/zero", "a.flac/../../x", "~/x", "file:///etc/passwd", "a" * 5000, "a\0b"]
    table = write_table(corpus / "t.jsonl", [{"file_name": name} for name in names])
    assert all(isinstance(row, Rejection) for row in rows_of(table))
