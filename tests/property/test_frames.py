from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.core import frames


class Transport:
    """The two methods that the protocol calls on a transport it was given; not ours to test."""

    aborted = False

    def abort(self) -> None:
        self.aborted = True


class Collector(frames.FrameProtocol):
    FRAME_MAX = 1 << 20

    def __init__(self) -> None:
        super().__init__()
        self.got: list[tuple[int, bytes, bytes]] = []

    def on_data(self, data: bytes) -> int:
        at = 0
        while len(data) - at >= frames.SIZE:
            length, rid, *_, meta = frames.HEADER.unpack_from(data, at)
            end = at + frames.SIZE + length
            if end > len(data):
                break
            body = at + frames.SIZE + meta
            self.got.append((rid, data[at + frames.SIZE : body], data[body:end]))
            at = end
        return at


Frames = st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=40), st.binary(max_size=300)), max_size=12)


@given(Frames, st.lists(st.integers(1, 60), min_size=1))
def test_any_split_of_the_stream_parses_the_same(sent: list[tuple[int, bytes, bytes]], steps: list[int]) -> None:
    stream = b"".join(frames.frame(frames.REQUEST, rid, meta=meta, body=body) for rid, meta, body in sent)
    collector = Collector()
    at = k = 0
    while at < len(stream):
        step = steps[k % len(steps)]
        collector.data_received(stream[at : at + step])
        at, k = at + step, k + 1
    assert collector.got == sent


def test_a_length_past_the_limit_aborts_the_connection() -> None:
    collector = Collector()
    transport = Transport()
    collector.transport = transport  # type: ignore[assignment]
    collector.data_received(b"\xff\xff\xff\xff rubbish")
    assert transport.aborted
