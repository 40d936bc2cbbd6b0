"""Large JSON an element at a time: an array, or the arrays of an object."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from clipkit.errors import DataError

CHUNK_CHARS = 1 << 20
MAX_ELEMENT_CHARS = 1 << 26
SPACE = re.compile(r"[ \t\r\n]*")
SPACE_AND_COMMA = re.compile(r"[ \t\r\n,]*")


def elements(file: Path, array: str) -> Iterator[Any]:
    """The elements of the array that stands under this key of the file's outermost object."""
    with open(file, encoding="utf-8-sig", errors="replace") as stream:
        window = _Window(file, stream)
        for key in window.object_keys():
            if key == array and window.peek() == "[":
                yield from window.array()
                return
            window.pass_over()


def items(stream: IO[str], file: Path) -> Iterator[Any]:
    """The elements of the array that the text consists of; `file` is what errors call it."""
    return _Window(file, stream).array()


def members(file: Path) -> Iterator[tuple[str, Any]]:
    """Key and value of each member of the file's outermost object."""
    with open(file, encoding="utf-8-sig", errors="surrogateescape") as stream:
        window = _Window(file, stream)
        for key in window.object_keys():
            window.peek()
            yield key, window.value()


def first_elements(file: Path, *arrays: str) -> Iterator[tuple[str, Any]]:
    """Key and first element of each of these arrays of the outermost object, or of all, in the file's order.

    An array is passed over only when the next one is asked for: it may be long.
    """
    with open(file, encoding="utf-8-sig", errors="replace") as stream:
        window = _Window(file, stream)
        for key in window.object_keys():
            if (not arrays or key in arrays) and window.peek() == "[":
                for number, element in enumerate(window.array()):
                    if number == 0:
                        yield key, element
            else:
                window.pass_over()


class _Window:
    """The part of the text that is in memory, and the place in it."""

    def __init__(self, file: Path, stream: IO[str]) -> None:
        self._file = file
        self._read = stream.read
        self._text = ""
        self._position = 0
        self._is_whole = False
        self._decode = json.JSONDecoder().raw_decode

    def object_keys(self) -> Iterator[str]:
        """The keys of an object; each one's value is to be read before the next one is asked for."""
        self.expect("{")
        while self.peek(SPACE_AND_COMMA) != "}":
            key = self.value()
            self.expect(":")
            yield key

    def pass_over(self) -> None:
        """Go behind the next value: behind an array an element at a time."""
        if self.peek() != "[":
            self.value()
            return
        for _ in self.array():
            pass

    def peek(self, passed_over: re.Pattern[str] = SPACE) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            self._position = passed_over.match(self._text, self._position).end()  # type: ignore[union-attr]
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._fill():
                return ""

    def expect(self, char: str) -> None:
        if self.peek() != char:
            raise self._damaged(f"`{char}` is missing")
        self._position += 1

    def value(self) -> Any:
        """The value that `peek` has come to."""
        while True:
            try:
                value, end = self._decode(self._text, self._position)
            except json.JSONDecodeError as error:
                if len(self._text) - self._position > MAX_ELEMENT_CHARS or not self._fill():
                    raise self._damaged(error.msg) from error
                continue
            if end == len(self._text) and self._fill():  # a number may go on behind the window
                continue
            self._position = end
            return value

    def array(self) -> Iterator[Any]:
        self.expect("[")
        while self.peek(SPACE_AND_COMMA) != "]":
            yield self.value()
        self.expect("]")

    def _fill(self) -> bool:
        chunk = "" if self._is_whole else self._read(CHUNK_CHARS)
        self._is_whole = not chunk
        self._text = self._text[self._position :] + chunk
        self._position = 0
        return not self._is_whole

    def _damaged(self, problem: str) -> DataError:
        near = self._text[self._position : self._position + 40]
        return DataError(f"`{self._file}` is no valid JSON: {problem} near `{near}`", "is the file complete?")
