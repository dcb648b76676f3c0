import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_optuna.search import _channel
from moe_optuna.search._channel import Channel

MESSAGES = st.dictionaries(st.text(), st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()))


@given(st.lists(MESSAGES, max_size=5), st.integers(1, 50))
def test_messages_arrive_whole_however_the_stream_is_cut(messages, piece):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender, recorder = socket.socketpair()
        with sender, recorder:
            for message in messages:
                Channel(sender).send(message)
            sender.shutdown(socket.SHUT_WR)
            stream = b"".join(iter(lambda: recorder.recv(2**16), b""))
        channel, arrived = Channel(theirs), []
        for start in range(0, len(stream), piece):
            ours.sendall(stream[start : start + piece])
            arrived += channel.receive()
        assert repr(arrived) == repr(messages)  # nan is nan


def test_the_end_of_the_stream_is_none_and_a_dead_peer_an_os_error():
    ours, theirs = socket.socketpair()
    theirs.close()
    channel = Channel(ours)
    assert channel.receive() is None
    with pytest.raises(OSError, match="Broken pipe"):
        channel.send({})


@pytest.mark.parametrize("line", [b"[1, 2]\n", b"cos\nsystem\n", b"\x80\x04\n"])
def test_what_is_not_a_message_is_refused(line):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(line)
        with pytest.raises(ValueError):  # noqa: PT011 - JSON's own message, or ours
            Channel(theirs).receive()


def test_a_message_without_an_end_is_refused(monkeypatch):
    monkeypatch.setattr(_channel, "LONGEST", 100)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"x" * 200)
        with pytest.raises(ValueError, match="more than 100 bytes"):
            Channel(theirs).receive()
