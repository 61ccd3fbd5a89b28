"""Protocol buffers as text: what their own library prints is read back as it was meant."""

from __future__ import annotations

import contextlib

import pytest
from google.protobuf import struct_pb2, text_format
from hypothesis import given
from hypothesis import strategies as st

from headrace.registry.importers.pbtxt import parse

LEAVES = st.one_of(st.booleans(), st.floats(-1e6, 1e6), st.text(st.characters(max_codepoint=126), max_size=20))
VALUES = st.recursive(
    LEAVES, lambda inner: st.dictionaries(st.sampled_from("abc"), inner) | st.lists(inner), max_leaves=8
)


def as_value(value: struct_pb2.Value) -> object:
    """A message of the library as `parse` shows it."""
    kind = value.WhichOneof("kind")
    if kind == "bool_value":
        return {kind: ["true" if value.bool_value else "false"]}
    if kind == "list_value":
        items = [as_value(item) for item in value.list_value.values]
        return {kind: [{"values": items} if items else {}]}
    if kind == "struct_value":
        return {kind: [as_struct(value.struct_value)]}
    return {kind: [getattr(value, str(kind))]}


def as_struct(found: struct_pb2.Struct) -> object:
    fields = [{"key": [key], "value": [as_value(item)]} for key, item in sorted(found.fields.items())]
    return {"fields": fields} if fields else {}


@given(st.dictionaries(st.sampled_from("abc"), VALUES), st.booleans(), st.booleans())
def test_what_the_library_prints(content, one_line, angles):
    message = struct_pb2.Struct()
    message.update(content)
    text = text_format.MessageToString(message, as_one_line=one_line, pointy_brackets=angles)
    assert parse(text) == as_struct(message)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("# only a comment\n", {}),
        ("a: 1, a: -2; a: 0x1F", {"a": [1, -2, 31]}),
        ("a: [1, 2.5, .5e1, 1f]", {"a": [1, 2.5, 5.0, 1]}),
        ("a: TYPE_FP32 b: 'x' \"y\"", {"a": ["TYPE_FP32"], "b": ["xy"]}),
        ("a { b <c: []> }", {"a": [{"b": [{"c": []}]}]}),
        (r'a: "q\"\\\n"', {"a": ['q"\\\n']}),
    ],
)
def test_forms(text, found):
    assert parse(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a:",
        "a {",
        "a }",
        "a: [1",
        "a: }",
        "a: 'x",
        "1: 2",
        "a = 3",
        "a {b: 1>",
        "\n\n ]",
        "a{" * 40,
        "a: 1e",
        "a: \0",
    ],
)
def test_errors_tell_the_line(text):
    with pytest.raises(ValueError, match=r"line \d+: "):
        parse(text)


@given(st.text(alphabet="ab{}<>[]:'\"\\#\n 1.-", max_size=40))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(ValueError):
        parse(text)
