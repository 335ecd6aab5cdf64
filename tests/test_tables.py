"""Tables: what is written is what is read, every fault has its line, and nothing but an InputError is ever raised."""

import csv
import json
import re
from contextlib import suppress
from pathlib import Path

import pytest
from corpora import MANY, write_table
from hypothesis import given, settings
from hypothesis import strategies as st

from wavtrain import InputError
from wavtrain.speech.tables import read_delimited, read_json, read_jsonl, read_lines, read_table

ANY_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
AWKWARD = st.sampled_from(["", " ", "\r", "\n", "\r\n", "\u2028", "\u0085", "\x1c", '"', '""', "a\rb", ",", "\t", "null", "007",
                           "\ufeff", "e\u0301", "\U0001F600"])
CELL = st.one_of(ANY_TEXT, AWKWARD)
JSON = st.recursive(st.none() | st.booleans() | CELL, lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(ANY_TEXT, inner, max_size=3), max_leaves=6)


def values_of(path: Path) -> list[dict]:
    return [record.values for record in read_table(str(path))]


@MANY
@given(rows=st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=6),
       style=st.sampled_from([{}, {"lineterminator": "\n", "quoting": csv.QUOTE_ALL}]))  # the default quotes \r with \r\n only
def test_csv_gives_back_what_was_written(tmp_path, rows, style):
    path = tmp_path / "t.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, **style).writerows([("a", "b", "c"), *rows])
    records = list(read_delimited(str(path)))
    assert [tuple(record.values.values()) for record in records] == rows
    lines, lines_of = 2, []
    for row in rows:
        lines_of.append(lines)
        lines += 1 + sum(cell.count("\n") for cell in row)
    assert [record.line for record in records] == lines_of


@MANY
@given(rows=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=6))
def test_tsv_takes_every_letter_as_it_is(tmp_path, rows):
    rows = [tuple(re.sub(r"[\t\r\n]", "", cell) for cell in row) for row in rows]
    path = write_table(tmp_path / "t.tsv", "a\tb\n" + "".join(f"{a}\t{b}\n" for a, b in rows))
    assert [tuple(values.values()) for values in values_of(path)] == rows


@MANY
@given(records=st.lists(st.dictionaries(CELL, JSON, max_size=4), min_size=1, max_size=5), ascii_only=st.booleans())
def test_json_lines_give_back_what_was_written(tmp_path, records, ascii_only):
    lines = [json.dumps(record, ensure_ascii=ascii_only) + "\n" for record in records]
    assert values_of(write_table(tmp_path / "t.jsonl", "".join(lines))) == records
    assert values_of(write_table(tmp_path / "t.json", json.dumps(records, ensure_ascii=ascii_only))) == records


PIECES = st.sampled_from([b"a,b\n", b"a\tb\n", b'"', b"\r", b"\n", b"\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\xe2\x82",
                          b"{", b"}", b'{"a": "b"}\n', b'{"a": "\\ud800"}\n', b"[", b"]", b",", b":", b"1e999", b"x,y\n"])


@settings(MANY, max_examples=300)
@given(content=st.one_of(st.binary(max_size=60), st.lists(PIECES, max_size=12).map(b"".join)),
       ending=st.sampled_from(["csv", "tsv", "jsonl", "json"]))
def test_rubbish_is_refused_in_one_way(tmp_path, content, ending):
    path = write_table(tmp_path / f"t.{ending}", content)
    with suppress(InputError):
        for record in read_table(str(path)):
            assert record.line >= 1
            json.dumps(record.values, ensure_ascii=False).encode()


HEADER = "file_name,text\n"


@pytest.mark.parametrize(("content", "expected"), [
    ("\ufeff" + HEADER + "a,b\n", [{"file_name": "a", "text": "b"}]),
    ('\ufeff"file_name",text\na,b\n', [{"file_name": "a", "text": "b"}]),
    ("file_name,text\r\na,b\r\n", [{"file_name": "a", "text": "b"}]),
    (" file_name , text \na,b", [{"file_name": "a", "text": "b"}]),
    (HEADER + "\n\na,b\n\n", [{"file_name": "a", "text": "b"}]),
    (HEADER + 'a,"zero, oh"\nb,"he said ""zero"""\nc,"zero\nzero"\n', [
        {"file_name": "a", "text": "zero, oh"}, {"file_name": "b", "text": 'he said "zero"'},
        {"file_name": "c", "text": "zero\nzero"}]),
    (HEADER + 'a,five " six\nb,x"y"\n', [{"file_name": "a", "text": 'five " six'}, {"file_name": "b", "text": 'x"y"'}]),
    (HEADER + "".join(f"a,{word}\n" for word in ("null", "NA", "nan", "None", "true", "007", "1.0", " x ")), [
        {"file_name": "a", "text": word} for word in ("null", "NA", "nan", "None", "true", "007", "1.0", " x ")]),
    (HEADER + f"a,{'x' * 1_000_000}\n", [{"file_name": "a", "text": "x" * 1_000_000}]),
])
def test_good_csv(tmp_path, content, expected):
    assert values_of(write_table(tmp_path / "t.csv", content)) == expected
    assert values_of(write_table(tmp_path / "T.CSV", content)) == expected


@pytest.mark.parametrize(("content", "message"), [
    (b"", "t.csv: is empty"),
    (b"\n\n", "t.csv: is empty"),
    (b"\xef\xbb\xbf", "t.csv: is empty"),
    (b"file_name,text,text\n", "t.csv: names the column 'text' twice"),
    (b"file_name,text\na,zero\nb,gr\xf6\xdfer\n", r"t.csv line 3: is not UTF-8 \(byte 0xF6\)"),
    (b"file_name,text\na,ze\xffro\nb,one\n", r"t.csv line 2: is not UTF-8 \(byte 0xFF\)"),
    (b"file_name,text\na,cut \xe2\x82", r"t.csv line 2: is not UTF-8 \(byte 0xE2\)"),
    (HEADER.encode("utf-16"), "t.csv: is UTF-16"),
    (HEADER.encode("utf-16-be"), "t.csv line 1: holds a NUL character"),
    (b"file_name,text\na,b\0c\n", "t.csv line 2: holds a NUL character"),
    (b'file_name,text\na,b\nb,"one\nc,two\nd,three\n', "t.csv line 3: .*quote in this row not closed"),
    (b'file_name,text\na,"one" two\n', "t.csv line 2: .*quote in this row not closed, or not doubled"),
    (b"file_name,text\na," + b"x" * ((1 << 24) + 1), "t.csv line 2: field larger than field limit"),
])
def test_bad_csv_is_named_with_its_line(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        values_of(write_table(tmp_path / "t.csv", content))


@pytest.mark.parametrize(("name", "content"), [("t.csv", b"file_name,text\ra,b\rc,d\r"), ("t.tsv", b"path\ttext\na\tb\rc\n")])
def test_a_lone_carriage_return_is_not_taken_for_a_quote(tmp_path, name, content):
    with pytest.raises(InputError, match=r"line [12]: ") as raised:
        values_of(write_table(tmp_path / name, content))
    assert "quote" not in str(raised.value)


def test_good_rows_before_a_fault_come_first(tmp_path):
    reader = read_delimited(str(write_table(tmp_path / "t.csv", b"a,b\n1,2\n\xff,3\n")))
    assert next(reader).values == {"a": "1", "b": "2"}
    with pytest.raises(InputError, match="line 3"):
        next(reader)


def test_ragged_rows_keep_their_place(tmp_path):
    path = write_table(tmp_path / "t.csv", 'a,b\n1\n1,2,3\n"x\ny",2\n\n,\n   \n')
    assert [(record.line, record.values, record.fault) for record in read_delimited(str(path))] == [
        (2, {}, "has 1 fields where the header has 2"), (3, {}, "has 3 fields where the header has 2"),
        (4, {"a": "x\ny", "b": "2"}, None), (7, {"a": "", "b": ""}, None), (8, {}, "has 1 fields where the header has 2")]


def test_json_values_stay_what_they_are(tmp_path):
    line = '{"a": 1.0, "b": 7e3, "c": 12345678901234567890, "d": -0, "e": NaN, "f": true, "g": null, "h": "007", "i": "true"}\n'
    expected = {"a": "1.0", "b": "7e3", "c": "12345678901234567890", "d": "-0", "e": "NaN", "f": True, "g": None, "h": "007",
                "i": "true"}
    for name in ("t.jsonl", "t.json"):
        assert values_of(write_table(tmp_path / name, line)) == [expected]
    assert values_of(write_table(tmp_path / "list.json", f"[{line}]")) == [expected]


def test_faults_of_json_lines_keep_their_place(tmp_path):
    content = '{"a": "1"}\n{"a": \n[1]\n\n"x"\n{"a": "\\ud83d\\ude00"}\n{"a": "\\ud83d"}\n' + '{"a":' * 5000 + "\n{}\n"
    records = list(read_jsonl(str(write_table(tmp_path / "t.jsonl", content))))
    assert [(record.line, record.values) for record in records] == [
        (1, {"a": "1"}), (2, {}), (3, {}), (5, {}), (6, {"a": "\U0001F600"}), (7, {}), (8, {}), (9, {})]
    faults = ["is not JSON", "is not a JSON object", "is not a JSON object", "half of a surrogate pair", "is not JSON"]
    found = [record.fault for record in records if record.fault]
    assert len(found) == len(faults)
    assert all(fault in text for fault, text in zip(faults, found, strict=True))


@pytest.mark.parametrize(("name", "content", "message"), [
    ("t.jsonl", '{"a": 1}\n{"a": 2}\n{"a', "t.jsonl line 3: the last line is cut off"),
    ("t.json", '{"a": {"b": 1},\n "c": {"b"', "t.json line 2: is not JSON"),
    ("t.json", '[{"a": 1},\n', "t.json line 2: is not JSON"),
    ("t.json", "", "t.json: is empty"),
    ("t.json", "3", "t.json: holds neither records by id nor a list of records"),
    ("t.json", "[" * 100_000, "t.json line 1: is not JSON"),
])
def test_bad_json_is_named_with_its_line(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        values_of(write_table(tmp_path / name, content))


def test_json_by_id_or_in_a_list(tmp_path):
    by_id = write_table(tmp_path / "by_id.json", '{"u1": {"wav": "a"}, "u2": {"id": "own"},\n "u3": 4}')
    assert [(record.line, record.values, record.fault) for record in read_json(str(by_id))] == [
        (1, {"id": "u1", "wav": "a"}, None), (2, {"id": "own"}, None), (3, {}, "entry 'u3' is not an object")]
    listed = write_table(tmp_path / "list.json", '\ufeff[{"wav": "a"}, 5]')
    assert [(record.values, record.fault) for record in read_json(str(listed))] == [
        ({"wav": "a"}, None), ({}, "entry 1 is not an object")]
    lines = write_table(tmp_path / "lines.json", '\n{"wav": "a"}\n{"wav": "b"}\n')
    assert [record.values for record in read_json(str(lines))] == [{"wav": "a"}, {"wav": "b"}]


@pytest.mark.parametrize(("name", "content"), [
    ("t.json", '{"u1": {"wav": "a"}, "u1": {"wav": "b"}}'), ("t.jsonl", '{"wav": "a", "wav": "b"}\n{"wav": "c"}\n')])
def test_a_key_given_twice_is_not_lost(tmp_path, name, content):
    """A csv with two columns of a name is refused; of two equal keys one would be dropped in silence."""
    path = write_table(tmp_path / name, content)
    with suppress(InputError):
        assert next(read_table(str(path))).fault is not None


def test_lines_end_at_line_feeds_only(tmp_path):
    path = write_table(tmp_path / "t.txt", "\ufeffa\rb\n\u2028c\u0085\x0b\n\nlast")
    assert list(read_lines(str(path))) == [(1, "a\rb\n"), (2, "\u2028c\u0085\x0b\n"), (3, "\n"), (4, "last")]


def test_what_is_no_file(tmp_path):
    for name, message in (("absent.csv", "absent.csv: No such file"), (".", "Is a directory|not a regular file")):
        with pytest.raises(InputError, match=message):
            values_of(tmp_path / name)
