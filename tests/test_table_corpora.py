"""Manifest files: csv, tsv, jsonl, json with named columns, SpeechBrain's, NeMo's, fairseq's and Common Voice's."""

import os
from pathlib import Path

import pytest
from corpora import outcome, write_clips, write_table

from wavtrain import InputError
from wavtrain.speech.rows import Columns, Row
from wavtrain.speech.table_corpora import rows_of_table


def rows_of(path: Path, audio_root: Path | str | None = None, **columns: str) -> list:
    return list(rows_of_table(str(path), Columns(**columns), audio_root and str(audio_root)))


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_clips(tmp_path / "corpus", "a.flac", "b.flac", "sub/c.flac")


CSV, TSV = "file_name,text\n", "path\tsentence\n"


@pytest.mark.parametrize(("name", "content", "expected"), [
    ("t.csv", "\ufeff" + CSV + "a.flac,x\r\nb.flac,y\r\n", [("a.flac", "x"), ("b.flac", "y")]),
    ("t.csv", CSV + "b.flac,x\na.flac,y\nb.flac,x\n", [("b.flac", "x"), ("a.flac", "y"), ("b.flac", "x")]),
    ("t.csv", CSV + 'a.flac,"x\ny"\nb.flac\nb.flac,x,y\nsub/c.flac,z\n', [
        ("a.flac", "x\ny"), ("t.csv line 4", "malformed_row"), ("t.csv line 5", "malformed_row"), ("sub/c.flac", "z")]),
    ("t.csv", CSV + ",x\nd.flac,y\n../e.flac,z\n", [
        ("t.csv line 2", "malformed_row"), ("d.flac", "missing_file"), ("e.flac", "outside_folder")]),
    ("t.tsv", TSV + 'a.flac\t"x\nb.flac\ty"\n', [("a.flac", '"x'), ("b.flac", 'y"')]),
    ("t.csv", ",file_name,text\n0,a.flac,x\n1,b.flac,y\n", [("a.flac", "x"), ("b.flac", "y")]),
    ("t.csv", "ID,wav,wrd\nu1,a.flac,x\nu2,$data_root/sub/c.flac,y\n", [("u1", "x"), ("u2", "y")]),
    ("t.jsonl", '{"audio_filepath": "a.flac", "text": 7.0}\n\n{"audio_filepath": "b.flac"}\n', [
        ("a.flac", "7.0"), ("b.flac", None)]),
    ("t.jsonl", '{"audio": "a.flac"}\n{"audio": \n{"audio": "b.flac", "text": "only here"}\n{"text": "x"}\n', [
        ("a.flac", None), ("t.jsonl line 2", "malformed_row"), ("b.flac", "only here"), ("t.jsonl line 4", "malformed_row")]),
    ("t.jsonl", '{"audio": "a.flac", "text": "\\ud83d"}\n{"audio": "b.flac", "text": "\\ud83d\\ude00"}\n', [
        ("t.jsonl line 1", "malformed_row"), ("b.flac", "\U0001F600")]),
    ("t.json", '{"u1": {"wav": "a.flac", "words": "x"},\n"u2": 5, "u3": {"wav": "b.flac", "words": "NA"}}', [
        ("u1", "x"), ("t.json line 2", "malformed_row"), ("u3", "NA")]),
    ("t.json", '[{"file": "a.flac", "transcript": "x"}, {"file": "b.flac", "transcript": true}]', [
        ("a.flac", "x"), ("b.flac", "true")]),
])
def test_tables(folder, name, content, expected):
    assert outcome(rows_of(write_table(folder / name, content))) == expected


@pytest.mark.parametrize(("name", "content", "message"), [
    ("t.csv", CSV, "t.csv: has no rows that could be read"),
    ("t.csv", CSV + "a\n", r"t.csv: has no rows that could be read \(line 2 has 1 fields where the header has 2\)"),
    ("t.csv", "", "t.csv: is empty"),
    ("t.tsv", "", "t.tsv: is empty"),
    ("t.tsv", TSV, "t.tsv: has no rows that could be read"),
    ("t.jsonl", "", "t.jsonl: has no rows that could be read"),
    ("t.jsonl", "[1]\n", r"t.jsonl: has no rows that could be read \(line 1 is not a JSON object\)"),
    ("t.json", "[]", "t.json: has no rows that could be read"),
    ("t.csv", "file_name;text\na.flac;x\n", "t.csv: no column with audio among 'file_name;text': it seems .* by ';'"),
    ("t.csv", TSV + "a.flac\tx\n", r"it seems to be separated by '\\t'"),
    ("t.csv", "words,sound\nx,a.flac\n", "no column with audio among 'words', 'sound': --audio_column_name names it"),
    ("t.csv", CSV + 'a.flac,x\nb.flac,"y\nc.flac,z\n', "t.csv line 3: .* quote"),
    ("t.csv", CSV.encode() + b"a.flac,gr\xf6\xdfe\n", r"t.csv line 2: is not UTF-8 \(byte 0xF6\)"),
    ("t.tsv", b"\xff\xfep\0a\0", "t.tsv: is UTF-16"),
    ("t.jsonl", '{"audio": "a.flac"}\n{"aud', "t.jsonl line 2: the last line is cut off"),
])
def test_tables_that_cannot_be_used(folder, name, content, message):
    with pytest.raises(InputError, match=message) as raised:
        rows_of(write_table(folder / name, content))
    assert str(raised.value).startswith(f"{folder}/t.")


def test_an_object_without_keys_has_no_fault_to_name(folder):
    with pytest.raises(InputError, match=r"t.jsonl: has no rows that could be read") as raised:
        rows_of(write_table(folder / "t.jsonl", "{}\n"))
    assert "None" not in str(raised.value)


def test_explicit_columns(folder):
    table = write_table(folder / "t.csv", "sound,text,said,who,tongue,name\na.flac,no,yes,Ada,en,u1\n")
    row, = rows_of(table, audio="sound", text="said", speaker="who", language="tongue", id="name")
    assert (row.utterance_id, row.text, row.speaker, row.language) == ("u1", "yes", "Ada", "en")
    assert (row.source, row.where) == (str(folder / "a.flac"), f"{table} line 2")
    with pytest.raises(InputError, match=r"t.csv: --text_column_name sentence: there are only sound, text, said, who"):
        rows_of(table, audio="sound", text="sentence")


def test_columns_that_come_late_in_a_file(folder):
    records = [{"audio": "a.flac"}] * 999 + [{"audio": "b.flac", "text": "late"}]
    assert outcome(rows_of(write_table(folder / "t.jsonl", records)))[-2:] == [("a.flac", None), ("b.flac", "late")]


@pytest.mark.parametrize(("name", "expected"), [
    ("corpus/a.flac", "corpus/a.flac"), ("$data_root/o.flac", "o.flac"), ("{}/corpus/a.flac", "corpus/a.flac"),
    ("{}/o.flac", "o.flac"), ("{}/p.flac", "missing_file"), ("p.flac", "missing_file"), ("/etc/hostname", "outside_folder"),
    ("../o.flac/../..", "outside_folder"), ("corpus/../../../x", "outside_folder"),
])
def test_audio_root_is_where_paths_begin_and_stay(folder, tmp_path, name, expected):
    write_clips(tmp_path, "o.flac")
    row, = rows_of(write_table(folder / "t.csv", [["file_name"], [name.format(tmp_path)]]), tmp_path)
    assert (row.utterance_id if isinstance(row, Row) else row.reason) == expected


@pytest.mark.parametrize("name", ["../o.flac", "link.flac"])
def test_the_remedy_that_a_refusal_names_works(folder, tmp_path, name):
    """`--audio_root DIR allows a wider folder`: then it has to, and the table's other rows still have to be found."""
    write_clips(tmp_path, "o.flac")
    (folder / "link.flac").symlink_to("../o.flac")
    path = write_table(folder / "t.csv", f"{CSV}{name},x\na.flac,y\n")
    refused, row = rows_of(path)
    assert (refused.reason, row.text) == ("outside_folder", "y")
    assert "--audio_root" in refused.detail
    assert [isinstance(row, Row) and row.text for row in rows_of(path, tmp_path)] == ["x", "y"]


@pytest.mark.parametrize("names", [["a.flac", "b.flac"], ["gone.flac", "a.flac", "b.flac"]])
def test_common_voice_keeps_its_audio_in_clips(tmp_path, names):
    write_clips(tmp_path / "clips", "a.flac", "b.flac")
    table = write_table(tmp_path / "train.tsv", [["client_id", "path", "sentence"], *(["s", name, "x"] for name in names)])
    found = [(row.utterance_id, row.speaker) for row in rows_of(table) if isinstance(row, Row)]
    assert found == [("a.flac", "s"), ("b.flac", "s")]


def test_the_tables_own_folder_goes_before_clips(tmp_path):
    write_clips(tmp_path, "a.flac", "clips/a.flac")
    row, = rows_of(write_table(tmp_path / "train.tsv", TSV + "a.flac\tx\n"))
    assert row.source == str(tmp_path / "a.flac")


FAIRSEQ = "a.flac\t800\nsub/c.flac\t800\n"


@pytest.mark.parametrize("root", ["{}", ".", "{}\r"])
@pytest.mark.parametrize(("beside", "texts"), [
    ({}, [None, None]), ({".wrd": "ONE TWO\n\n"}, ["ONE TWO", ""]), ({".wrd": "ONE\r\nTWO"}, ["ONE", "TWO"]),
    ({".ltr": "O N E | T W O |\nI T ' S |\n"}, ["ONE TWO", "IT'S"]), ({".wrd": "A\nB\n", ".ltr": "C\nD\n"}, ["A", "B"]),
])
def test_fairseq(folder, root, beside, texts):
    for ending, content in beside.items():
        write_table(folder / f"train{ending}", content)
    rows = rows_of(write_table(folder / "train.tsv", root.format(folder) + "\n" + FAIRSEQ))
    assert outcome(rows) == [("a.flac", texts[0]), ("sub/c.flac", texts[1])]
    assert os.path.samefile(rows[1].audio, folder / "sub" / "c.flac")


def test_fairseq_rows_keep_their_texts_when_others_are_refused(folder, tmp_path):
    write_clips(tmp_path, "o.flac")
    write_table(folder / "train.wrd", "A\nB\nC\nD\nE\nF\n")
    lines = "../o.flac\t5\nb.flac\nb.flac\tmany\ngone.flac\t7\n\nb.flac\t800\n"
    assert outcome(rows_of(write_table(folder / "train.tsv", f"{folder}\n{lines}"))) == [
        ("o.flac", "outside_folder"), ("train.tsv line 3", "malformed_row"), ("train.tsv line 4", "malformed_row"),
        ("gone.flac", "missing_file"), ("train.tsv line 6", "malformed_row"), ("b.flac", "F")]


def test_fairseq_that_moved(folder):
    table = write_table(folder / "manifests" / "train.tsv", f"/not/here\n{FAIRSEQ}")
    with pytest.raises(InputError, match=r"train.tsv line 1: the folder /not/here is not there; --audio_root says where it is"):
        rows_of(table)
    assert outcome(rows_of(table, folder)) == [("a.flac", None), ("sub/c.flac", None)]


@pytest.mark.parametrize("words", ["A\n", "A\nB\nC\n", ""])
def test_fairseq_with_a_wrong_number_of_texts(folder, words):
    write_table(folder / "train.wrd", words)
    with pytest.raises(InputError, match=rf"train.wrd: has {words.count(chr(10))} lines for the 2 files of train.tsv"):
        rows_of(write_table(folder / "train.tsv", f"{folder}\n{FAIRSEQ}"))


def test_a_tsv_separated_by_commas_is_no_fairseq_table(folder):
    with pytest.raises(InputError, match="line 1") as raised:
        rows_of(write_table(folder / "t.tsv", CSV + "a.flac,x\n"))
    assert "separated by ','" in str(raised.value)
