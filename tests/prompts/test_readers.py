"""Readers: every format, every kind of broken file, nothing lost without a word."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refusalscope.errors import InputError
from refusalscope.prompts import BadRow, read_pairs, read_prompts


def _write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


ROWS = [
    {"id": "1", "text": "Bake bread.", "label": "harmless", "category": "food"},
    {"id": "2", "text": "Steal, then lie?", "label": "harmful", "category": "theft"},
]


def _same_rows(folder: Path, ending: str) -> Path:
    path = folder / f"set{ending}"
    if ending == ".csv":
        return _write(
            folder,
            path.name,
            "id,text,label,category\n1,Bake bread.,harmless,food\n"
            '2,"Steal, then lie?",harmful,theft\n',
        )
    if ending == ".jsonl":
        return _write(folder, path.name, "\n".join(json.dumps(row) for row in ROWS))
    if ending == ".json":
        return _write(folder, path.name, json.dumps(ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".json", ".parquet"])
def test_every_format_gives_the_same_prompts(tmp_path: Path, ending: str) -> None:
    prompts = read_prompts(_same_rows(tmp_path, ending))
    assert [(p.id, p.text, p.label, p.category, p.source) for p in prompts] == [
        ("1", "Bake bread.", "harmless", "food", "set"),
        ("2", "Steal, then lie?", "harmful", "theft", "set"),
    ]
    assert prompts.skipped == ()


def test_the_source_records_the_file(tmp_path: Path) -> None:
    path = _same_rows(tmp_path, ".csv")
    (source,) = read_prompts(path, licence="MIT").sources
    assert (source.name, source.path, source.licence, source.n) == ("set", str(path), "MIT", 2)
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_text_and_string_lists_get_ids_from_name_and_line(tmp_path: Path) -> None:
    prompts = read_prompts(_write(tmp_path, "a.txt", "one\n\ntwo\n\n"), label="harmless")
    assert [(p.id, p.text, p.label) for p in prompts] == [
        ("a-1", "one", "harmless"),
        ("a-3", "two", "harmless"),
    ]
    assert prompts.skipped == (BadRow(2, "empty line"),)
    assert read_prompts(_write(tmp_path, "b.json", '["one", "two"]')).texts == ("one", "two")


def test_byte_order_mark_windows_line_ends_and_line_separators_do_no_harm(tmp_path: Path) -> None:
    bom = b"\xef\xbb\xbf"
    assert read_prompts(_write(tmp_path, "a.csv", bom + b"text\r\none\r\n")).texts == ("one",)
    assert read_prompts(_write(tmp_path, "a.txt", bom + b"one\r\ntwo")).texts == ("one", "two")
    separator = '{"text": "one\u2028two"}\n'
    assert read_prompts(_write(tmp_path, "a.jsonl", separator)).texts == ("one\u2028two",)


def test_a_prompt_may_span_lines_of_a_csv_and_bad_rows_still_get_their_line(tmp_path: Path) -> None:
    prompts = read_prompts(
        _write(tmp_path, "a.csv", 'text,label\n"one\ntwo",safe\nx,odd\ny,safe\n')
    )
    assert prompts.texts == ("one\ntwo", "y")
    assert [row.line for row in prompts.skipped] == [4]


def test_conversation_columns_are_read(tmp_path: Path) -> None:
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    row = {"text": "Go on", "system": "Be brief.", "thinking": "Hm.", "history": history}
    as_text = row | {"history": json.dumps(history)}
    broken = row | {"history": [{"role": "robot", "content": "x"}]}
    path = _write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, (row, as_text, broken))))
    prompts = read_prompts(path)
    for prompt in prompts:
        assert (prompt.system, prompt.thinking) == ("Be brief.", "Hm.")
        assert prompt.history == (("user", "Hi"), ("assistant", "Hello"))
    assert len(prompts) == 2
    assert "role" in prompts.skipped[0].reason


def test_bad_rows_are_listed_with_line_and_reason(tmp_path: Path) -> None:
    lines = [
        '{"id": "a", "text": "good one"}',
        '{"id": "b", "text": "   "}',
        '{"id": "c", "text": ',
        '{"id": "d", "text": "x", "label": "maybe"}',
        '{"id": "a", "text": "again"}',
        json.dumps({"id": "e", "text": "y" * 101}),
        '{"id": "f", "text": 7}',
        "[1, 2]",
        '{"id": "g"}',
        '{"id": "h", "text": "half \\ud800 pair"}',
        '{"id": "i", "text": "good two", "label": "unsafe"}',
    ]
    prompts = read_prompts(_write(tmp_path, "a.jsonl", "\n".join(lines)), max_chars=100)
    assert prompts.texts == ("good one", "good two")
    assert prompts[1].label == "harmful"
    reasons = {row.line: row.reason for row in prompts.skipped}
    assert list(reasons) == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    for line, words in {
        2: "empty text",
        3: "broken JSON",
        4: "label 'maybe'",
        5: "'a' stands already on line 1",
        6: "101 characters",
        7: "int, expected text",
        8: "JSON list",
        9: "empty text",
        10: "surrogate",
    }.items():
        assert words in reasons[line]


def test_every_row_is_either_a_prompt_or_a_skipped_row(tmp_path: Path) -> None:
    content = 'text,label\na,safe\nb\n\nc,safe,extra\n,safe\nd,huh\n"e"x,safe\nf,safe\n'
    prompts = read_prompts(_write(tmp_path, "a.csv", content))
    assert prompts.texts == ("a", "f")
    assert [row.line for row in prompts.skipped] == [3, 4, 5, 6, 7, 8]
    assert prompts.sources[0].n == 2


def test_an_unclosed_quote_is_reported_with_the_lines_it_swallowed(tmp_path: Path) -> None:
    prompts = read_prompts(_write(tmp_path, "a.csv", 'text\na\n"b\nc\nd\n'))
    assert prompts.texts == ("a",)
    assert prompts.skipped[0].line == 3
    assert "lines 3 to 5 lost" in prompts.skipped[0].reason


def test_label_argument_fills_in_but_never_overrides_the_file(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.csv", "text,label\na,safe\nb,unsafe\nc,\n")
    prompts = read_prompts(path, label="harmless")
    assert [(p.text, p.label) for p in prompts] == [("a", "harmless"), ("c", "harmless")]
    assert "labelled harmful" in prompts.skipped[0].reason
    with pytest.raises(InputError, match="harmful or harmless"):
        read_prompts(path, label="safe")  # type: ignore[arg-type]


def test_column_and_category_name_the_columns_to_read(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.csv", "q,kind,label\nhello,tea,3\n")
    (prompt,) = read_prompts(path, column="q", category="kind", label="harmless")
    assert (prompt.text, prompt.category, prompt.label) == ("hello", "tea", "harmless")
    for wrong in ({"column": "z"}, {"column": "q", "category": "z"}):
        with pytest.raises(InputError, match=r"no column 'z'.*'q', 'kind', 'label'"):
            read_prompts(path, **wrong)  # type: ignore[arg-type]


def test_the_input_of_an_alpaca_row_follows_its_instruction(tmp_path: Path) -> None:
    # Alpaca has a column "text" too, which holds the whole rendered prompt with its answer.
    content = "instruction,input,output,text\nSum up.,A story.,x,y\nGreet.,,x,y\n"
    prompts = read_prompts(_write(tmp_path, "a.csv", content))
    assert prompts.texts == ("Sum up.\n\nA story.", "Greet.")


def test_unknown_columns_raise_and_name_what_was_found_what_is_known_and_the_way_out(
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError) as caught:
        read_prompts(_write(tmp_path, "a.csv", "foo,bar\n1,2\n"))
    for part in ("'foo', 'bar'", "AdvBench: goal, target", "holds the prompts text", "column="):
        assert part in str(caught.value)


def test_prompts_and_pairs_taken_for_each_other_are_told_so(tmp_path: Path) -> None:
    pairs = _write(tmp_path, "p.csv", "harmful,harmless\na,b\n")
    with pytest.raises(InputError, match="looks like a pair set"):
        read_prompts(pairs)
    with pytest.raises(InputError, match=r"needs harmful and harmless.*read_prompts"):
        read_pairs(_write(tmp_path, "a.csv", "text,label\na,safe\n"))


def _folder(folder: Path) -> Path:
    (folder / "set.csv").mkdir()
    return folder / "set.csv"


BROKEN_FILES = {
    "missing": (lambda d: d / "none.csv", "does not exist"),
    "folder": (_folder, "is a folder"),
    "empty": (lambda d: _write(d, "a.csv", ""), "is empty"),
    "blank": (lambda d: _write(d, "a.jsonl", " \n\n"), "is empty"),
    "ending": (lambda d: _write(d, "a.xlsx", "x"), r"ending '.xlsx'.*\.csv, \.jsonl"),
    "no ending": (lambda d: _write(d, "a", "x"), "no ending"),
    "latin-1": (lambda d: _write(d, "a.csv", b"text\ncaf\xe9\n"), r"byte 8 \(0xe9\).*UTF-8"),
    "utf-16": (lambda d: _write(d, "a.txt", "one".encode("utf-16")), "byte 0 "),
    "header only": (lambda d: _write(d, "a.csv", "text,label\n"), "no rows"),
    "doubled column": (lambda d: _write(d, "a.csv", "text,text\na,b\n"), "'text' more than once"),
    "broken header": (lambda d: _write(d, "a.csv", '"text\n'), "broken header"),
    "broken json": (lambda d: _write(d, "a.json", '["a", '), "not valid JSON"),
    "json object": (lambda d: _write(d, "a.json", '{"a": 1}'), "JSON object; expected a list"),
    "json empty": (lambda d: _write(d, "a.json", "[]"), "empty list"),
    "deep json": (lambda d: _write(d, "a.json", "[" * 100_000), "not valid JSON"),
    "no parquet": (lambda d: _write(d, "a.parquet", "text"), "not a readable Parquet"),
    "no usable row": (
        lambda d: _write(d, "a.csv", "text,label\n ,safe\nb,odd\n"),
        r"no usable row: 2 skipped, the first \(line 2\): empty text",
    ),
}


@pytest.mark.parametrize("kind", BROKEN_FILES)
def test_a_broken_file_raises_one_clear_sentence(tmp_path: Path, kind: str) -> None:
    make, message = BROKEN_FILES[kind]
    path = make(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError):
        read_pairs(path)


def test_a_file_without_rights_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _same_rows(tmp_path, ".csv")

    # Root may read every file, so the refusal is played rather than set as a file mode.
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)"):
        read_prompts(path)


def test_an_empty_parquet_raises_and_missing_numbers_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    with pytest.raises(InputError, match="no rows"):
        read_prompts(path)
    pq.write_table(pa.table({"text": ["a"], "category": [float("nan")]}), path)
    assert read_prompts(path)[0].category is None


def test_pairs_are_read_and_bad_pairs_listed(tmp_path: Path) -> None:
    content = (
        "id,harmful,harmless,category\np1,a,b,tea\np2,,b,tea\np3,a,,tea\n"
        "p1,c,d,tea\np5,same  text,same text,tea\n,e,f,\n"
    )
    pairs = read_pairs(_write(tmp_path, "a.csv", content))
    assert [(p.id, p.harmful, p.harmless, p.category) for p in pairs] == [
        ("p1", "a", "b", "tea"),
        ("a-7", "e", "f", None),
    ]
    assert {row.line: row.reason for row in pairs.skipped} == {
        3: "empty harmful",
        4: "empty harmless",
        5: "the id 'p1' stands already on line 2",
        6: "harmful and harmless are the same text",
    }
    assert pairs.sources[0].n == 2


def test_thinking_is_taken_from_between_the_marks_of_a_reply(tmp_path) -> None:
    row = {"question": "How do I pick a lock?", "score": 1, "category": ["A", "B"]}
    path = tmp_path / "star.json"
    path.write_text(
        json.dumps(
            [row | {"response": "<think>\nHm.\n</think>\n\nNo."}, row | {"response": "<think> No."}]
        )
    )
    found = read_prompts(path)
    assert [(p.thinking, p.category, p.label) for p in found] == [("Hm.", "A, B", "harmful")]
    assert [bad.reason for bad in found.skipped] == [
        "response holds no closed <think> ... </think>"
    ]
