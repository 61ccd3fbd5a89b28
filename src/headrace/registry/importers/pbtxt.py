"""Protocol buffers as text (https://protobuf.dev/reference/protobuf/textformat-spec/), as ``config.pbtxt`` has them.

Without a schema: a message is a dict from a field's name to the list of its values, and a name without quotes (an
enumeration, a truth value) is text like any other.
"""

from __future__ import annotations

import re
from typing import Union

Value = Union[str, int, float, "Message"]
Message = dict[str, list[Value]]
_TOKEN = re.compile(
    r"""(?P<space>[\s,;]+|\#[^\n]*)
    |(?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    |(?P<number>[-+]?(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)[fF]?(?![\w.]))
    |(?P<name>[-+]?[A-Za-z_][\w./]*)
    |(?P<mark>[{}<>\[\]:])""",
    re.VERBOSE,
)
_DEPTH_MAX = 32
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|x[0-9a-fA-F]{1,2}|.)", re.DOTALL)
_ESCAPES = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}


def parse(text: str) -> Message:
    """The message. Raises ValueError, naming the line."""
    parser = _Parser(text)
    found = parser.message("", 0)
    return found


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._kind, self._token = "", ""
        self._next()

    def message(self, end: str, depth: int) -> Message:
        """Fields up to the mark `end`; up to the end of the text where it is empty."""
        if depth > _DEPTH_MAX:
            raise self._error(f"nested deeper than {_DEPTH_MAX}")
        found: Message = {}
        while self._token != end or self._kind not in ("mark", "end"):
            if self._kind != "name":
                raise self._error("expected a field's name")
            values = found.setdefault(self._token, [])
            self._next()
            if self._token == ":":
                self._next()
            values += self._values(depth)
        self._next()
        return found

    def _values(self, depth: int) -> list[Value]:
        if self._token != "[" or self._kind != "mark":
            return [self._value(depth)]
        self._next()
        found = []
        while self._token != "]":
            found.append(self._value(depth))
        self._next()
        return found

    def _value(self, depth: int) -> Value:
        kind, token = self._kind, self._token
        if kind == "mark" and token in ("{", "<"):
            self._next()
            return self.message("}" if token == "{" else ">", depth + 1)
        self._next()
        if kind == "string":
            text = _unquoted(token)
            while self._kind == "string":  # neighbours are one
                text += _unquoted(self._token)
                self._next()
            return text
        if kind == "number":
            return _number(token)
        if kind == "name":
            return token
        raise self._error("expected a value")

    def _next(self) -> None:
        while True:
            if self._at == len(self._text):
                self._kind, self._token = "end", ""
                return
            match = _TOKEN.match(self._text, self._at)
            if match is None:
                raise self._error(f"unexpected {self._text[self._at]!r}")
            self._at = match.end()
            if match.lastgroup != "space":
                self._kind, self._token = str(match.lastgroup), match.group()
                return

    def _error(self, reason: str) -> ValueError:
        line = self._text.count("\n", 0, self._at) + 1
        return ValueError(f"line {line}: {reason}{f', got {self._token!r}' if self._token else ''}")


def _unquoted(token: str) -> str:
    """The text of a string; its escapes stand for bytes of UTF-8."""
    return _ESCAPE.sub(_meant, token[1:-1].encode()).decode(errors="replace")


def _meant(match: re.Match[bytes]) -> bytes:
    escape = match[1]
    if escape[:1] == b"x" and len(escape) > 1:
        return bytes([int(escape[1:], 16)])
    if escape.isdigit():
        return bytes([int(escape, 8) & 0xFF])
    return _ESCAPES.get(escape, escape)


def _number(token: str) -> int | float:
    if "x" in token.lower():
        return int(token, 16)
    bare = token.rstrip("fF")
    return float(bare) if re.search(r"[.eE]", bare) else int(bare)
