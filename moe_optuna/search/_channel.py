"""What controller and worker say to each other: one JSON object a line, over a socket that only these two hold.

The socket is one end of an anonymous pair that the worker inherits: it has no name that another process could connect
to, and JSON cannot carry code.

=====================  =================================================================================
controller to worker   ``{"run": task}``, ``{"prepare": recipe}``, ``{"go": bool}`` (the answer to a report),
                       ``{"stop": true}`` (save and give the trial back); the end of the stream means exit
worker to controller   ``{"ready": pid}``, ``{"reports": [[index, loss], ...]}`` (those of an earlier attempt),
                       ``{"report": [index, loss]}``, ``{"result": {...}}``, ``{"prepared": {...}}``,
                       ``{"result": {...}, "interrupted": true}``, ``{"failed": {"kind": ..., "reason": ...}}``
=====================  =================================================================================
"""

from __future__ import annotations

import json
import socket
from typing import Any

__all__ = ["Channel", "Message"]

Message = dict[str, Any]
LONGEST = 16 * 2**20
"""Bytes of a message; a longer one is a broken peer."""


class Channel:
    """Messages over a connected stream socket.

    Args:
        stream: The socket; the channel owns it.
    """

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._rest = b""

    def fileno(self) -> int:
        """The descriptor, for selectors."""
        return self._stream.fileno()

    def send(self, message: Message) -> None:
        """Send one message, whole.

        Raises:
            OSError: Where the peer is gone.
        """
        self._stream.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def receive(self) -> list[Message] | None:
        """Wait for data, and return the messages that are complete by then; ``None`` at the end of the stream.

        Raises:
            ValueError: Where what arrives is not a message.
        """
        try:
            data = self._stream.recv(2**16)
        except ConnectionError:
            return None
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST:
            raise ValueError(f"a message of more than {LONGEST} bytes")
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("a message that is not an object")
        return messages

    def close(self) -> None:
        """Close the socket; the peer sees the end of the stream."""
        self._stream.close()
