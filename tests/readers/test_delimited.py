from __future__ import annotations

from pathlib import Path

import pytest

from clipkit.errors import DataError
from clipkit.readers import ReadOptions
from clipkit.readers.delimited import open_text, rows_of, sniff


def rows(folder: Path, text: str | bytes, name: str = "t.csv", **options: object) -> list[list[str] | str]:
    """Each row's fields, or what is wrong with it; the notes come last."""
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    settings = ReadOptions(**options)
    notes: list[str] = []
    with open_text(file, settings.encoding) as stream:
        found = [fields or problem for _, fields, problem in rows_of(stream, sniff(file, settings), notes.append)]
    return [*found, *notes]


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
def test_quoted_fields_hold_anything(tmp_path: Path, separator: str) -> None:
    text = f'path,caption,n\na.jpg,"one{separator} ""two""\nthree",1\n"b.jpg",5" tall,2\n'
    assert rows(tmp_path, text.replace(",", separator)) == [
        ["a.jpg", f'one{separator} "two"\nthree', "1"],
        ["b.jpg", '5" tall', "2"],
    ]


@pytest.mark.parametrize("first", ["images/2.jpg", "2", "a2b"])
def test_a_quote_that_never_closes_takes_no_rows(tmp_path: Path, first: str) -> None:
    names = [first.replace("2", str(number)) for number in range(4)]
    text = f'path,caption,n\n{names[0]},"opens,1\n' + "".join(f"{name},b,1\n" for name in names[1:])
    assert rows(tmp_path, text) == [
        [names[0], '"opens', "1"],
        *([name, "b", "1"] for name in names[1:]),
        "line 2: a quote opens and never closes; it is read as part of the text",
    ]


def test_a_stray_quote_that_a_later_quote_seems_to_close(tmp_path: Path) -> None:
    text = 'path,caption\n1.jpg,"Hello, said he\n2.jpg,b\n3.jpg,"eight" is quoted, and more\n'
    assert rows(tmp_path, text)[:3] == [
        ["1.jpg", '"Hello, said he'],
        ["2.jpg", "b"],
        ["3.jpg", '"eight" is quoted, and more'],
    ]


def test_separators_in_the_only_caption(tmp_path: Path) -> None:
    assert rows(tmp_path, "image,caption\na.jpg,A dog, a cat\n") == [["a.jpg", "A dog, a cat"]]
    assert rows(tmp_path, "caption,image\nA dog, a cat,a.jpg\n") == [["A dog, a cat", "a.jpg"]]
    [problem] = rows(tmp_path, "id,caption,image\n1,A dog, a cat,a.jpg\n")
    assert problem == "the line has 4 fields, not 3"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("http://example.org/0.jpg\ta, b", ["http://example.org/0.jpg", "a, b"]),
        ("a, b\thttp://example.org/0.jpg", ["a, b", "http://example.org/0.jpg"]),
        ("x/0.jpg\ta; b, c", ["x/0.jpg", "a; b, c"]),
        ("0.jpg a dog, black", ["0.jpg", "a dog, black"]),
        ("0.jpg;a dog, black", ["0.jpg", "a dog, black"]),
    ],
)
def test_no_header(tmp_path: Path, line: str, expected: list[str]) -> None:
    assert rows(tmp_path, f"{line}\n{line}\n", "t.txt") == [expected, expected]


def test_ids_without_extension_and_without_a_header(tmp_path: Path) -> None:
    assert rows(tmp_path, "R_00\tone\nR_01\ttwo\n") == [["R_00", "one"], ["R_01", "two"]]


def test_the_hint_of_a_missing_header_works(tmp_path: Path) -> None:
    text = "7\ta dog\thttp://example.org/0.jpg\n"
    with pytest.raises(DataError, match=r"no header line: its first line is `7\ta dog") as caught:
        rows(tmp_path, text)
    assert "--columns image,caption,other1" in caught.value.hint
    columns = ("id", "caption", "url")
    assert rows(tmp_path, text, columns=columns) == [["7", "a dog", "http://example.org/0.jpg"]]


def test_a_column_that_is_named_again_gets_a_number(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,caption,caption, caption\n")
    assert sniff(tmp_path / "t.csv", ReadOptions()).columns == ("image", "caption", "caption.1", "caption.2")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path: Path, encoding: str, newline: str) -> None:
    text = newline.join(["image,caption", "a.jpg,größer", "b.jpg,klein", ""])
    assert rows(tmp_path, text.encode(encoding)) == [["a.jpg", "größer"], ["b.jpg", "klein"]]


def test_another_encoding_is_named(tmp_path: Path) -> None:
    assert rows(tmp_path, "image,caption\na.jpg,größer\n".encode("latin-1"), encoding="latin-1") == [
        ["a.jpg", "größer"]
    ]
