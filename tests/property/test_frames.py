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
            self.got.append((rid, bytes(data[at + frames.SIZE : body]), bytes(data[body:end])))
            at = end
        return at


def receive(protocol: frames.FrameProtocol, data: bytes) -> None:
    """What an event loop does with data that arrived."""
    while data:
        buffer = protocol.get_buffer(-1)
        count = min(len(buffer), len(data))
        buffer[:count] = data[:count]
        protocol.buffer_updated(count)
        data = data[count:]


Frames = st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=40), st.binary(max_size=300)), max_size=12)
LARGE = frames.READ_MAX
"""Bodies about as large as a read: below, at, and above what is received in place."""


@given(Frames, st.lists(st.integers(1, 60), min_size=1))
def test_any_split_of_the_stream_parses_the_same(sent: list[tuple[int, bytes, bytes]], steps: list[int]) -> None:
    stream = b"".join(frames.frame(frames.REQUEST, rid, meta=meta, body=body) for rid, meta, body in sent)
    collector = Collector()
    at = k = 0
    while at < len(stream):
        step = steps[k % len(steps)]
        receive(collector, stream[at : at + step])
        at, k = at + step, k + 1
    assert collector.got == sent


@given(
    st.lists(st.tuples(st.integers(-40, 40), st.sampled_from([0, 100, LARGE // 2, LARGE, 2 * LARGE])), max_size=5),
    st.lists(st.integers(1, 2 * LARGE), min_size=1),
)
def test_large_frames_among_small_ones(sizes: list[tuple[int, int]], steps: list[int]) -> None:
    sent = [(k, b"meta", bytes([k + 1]) * max(near + size, 0)) for k, (near, size) in enumerate(sizes)]
    stream = b"".join(frames.frame(frames.REQUEST, rid, meta=meta, body=body) for rid, meta, body in sent)
    collector = Collector()
    at = k = 0
    while at < len(stream):
        step = max(steps[k % len(steps)], 1000)
        receive(collector, stream[at : at + step])
        at, k = at + step, k + 1
    assert collector.got == sent


def test_a_length_past_the_limit_aborts_the_connection() -> None:
    collector = Collector()
    transport = Transport()
    collector.transport = transport  # type: ignore[assignment]
    receive(collector, b"\xff\xff\xff\xff rubbish, and more of it")
    assert transport.aborted
