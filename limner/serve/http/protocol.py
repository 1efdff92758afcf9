"""HTTP on one connection: uvicorn's httptools protocol, with deadlines and bounds that it has not.

Refusals that come before the app are told as the app tells them.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from limner.serve.http.errors import ApiError
from limner.serve.http.guards import HEADERS, error_parts, new_id

LARGE = 65_536  # bytes that are written by themselves


@dataclass(frozen=True)
class Bounds:
    """Seconds and sizes of a connection."""

    headers: float = 10.0  # seconds until all headers are there, from a request's first byte
    request: float = 30.0  # until the whole request is
    stall: float = 30.0  # without taking anything of what is sent
    idle: float = 30.0  # between requests
    linger: float = 2.0  # from a refusal to the end of the connection, so that the client can read it
    head: int = 16_384  # bytes of the request line and the headers
    fields: int = 100  # headers
    requests: int = 10_000  # on one connection
    connections: int = 512

    @property
    def tick(self) -> float:
        """Seconds between two looks at the deadlines."""
        shortest = min(self.headers, self.request, self.stall, self.linger)
        return min(1.0, max(0.02, shortest / 8))


def _refused(message: str, status: int = 400, code: str = "invalid_http") -> ApiError:
    return ApiError(status, message, code, headers={"Retry-After": "1"} if status == 503 else {})


LATE_HEAD = _refused("The request took too long to arrive: send its headers at once.", 408, "request_timeout")
LATE_BODY = _refused("The request took too long to arrive: send less, or faster.", 408, "request_timeout")
FULL = _refused("There are too many connections: close some, or try again.", 503, "too_many_connections")
INVALID = _refused("This is not a valid request of HTTP/1.1.")


class Connection(HttpToolsProtocol):
    """One connection. ``look`` is called now and then, and ends what takes too long."""

    def __init__(self, bounds: Bounds, config: Config, **given: Any):
        super().__init__(config, **given)
        self.bounds, self.timeout_keep_alive = bounds, bounds.idle  # type: ignore[assignment]
        self.refusal: ApiError | None = None
        self.ending = 0.0  # when the connection is cut after a refusal
        self.first = 0.0  # when the first byte of a request came; 0: none is arriving
        self.headed = True  # whether its headers are all there
        self.head, self.raw = 0, 0  # bytes of its head: those read, and those that came
        self.count = 0  # requests so far
        self.unsent, self.moved = 0, 0.0  # bytes that wait to be taken, and when that last changed

    # What arrives ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.first = time.monotonic()  # a connection on which nothing comes counts as a late request
        self.headed = False
        if len(self.connections) > self.bounds.connections and not self._make_room():
            self.refuse(FULL)

    def _make_room(self) -> bool:
        """Close the connection that has been without a request, if there is one."""
        for other in self.connections:
            if other is not self and isinstance(other, Connection) and other.is_idle():
                other.close()
                return True
        return False

    def close(self) -> None:
        """After what was answered has gone out."""
        self._flush()
        self.transport.close()

    def _flush(self) -> None:
        if self.cycle is not None and isinstance(self.cycle.transport, _Joined):
            self.cycle.transport.flush()

    def shutdown(self) -> None:
        """At the end of the server."""
        if self.cycle is None or self.cycle.response_complete:
            self.close()
        else:
            self.cycle.keep_alive = False

    def is_idle(self) -> bool:
        answered = self.cycle is not None and self.cycle.response_complete
        return answered and not self.first and not self.transport.is_closing()

    def data_received(self, data: bytes) -> None:
        if self.refusal is not None:
            return
        if not self.first:
            self.first, self.headed, self.raw = time.monotonic(), False, 0
        waiting = not self.headed
        super().data_received(data)
        if waiting and not self.headed:
            self.raw += len(data)  # a header that does not end is told of by nobody else
            if self.raw > self.bounds.head:
                self.refuse(self._too_long())

    def _too_long(self) -> ApiError:
        return _refused(
            f"The headers are too long: {self.bounds.head:,} bytes are the most.", 431, "headers_too_large"
        )

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.headed, self.head = False, 0
        self.count += 1
        self.first = self.first or time.monotonic()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.head += len(name) + len(value) + 4
        if self.head + len(self.url) > self.bounds.head or len(self.headers) >= self.bounds.fields:
            self._stop(self._too_long())
        if not self.headed:  # after that they are trailers, which nobody reads
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self.headed = True
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop(_refused("Requests may not be pipelined: wait for each answer."))
        names = [name for name, _ in self.headers]
        if b"transfer-encoding" in names:
            codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
            if (
                b"content-length" in names
                or codings != [b"chunked"]
                or self.parser.get_http_version() == "1.0"
            ):
                self._stop(_refused("The length of the body is said in two ways: send a length, or chunks."))
        if not self.url.startswith(b"/"):
            self._stop(_refused("The target of the request must be a path: send no address there."))
        super().on_headers_complete()
        self.cycle.transport = _Joined(self.transport, self.loop)  # type: ignore[assignment]
        extensions: dict[Any, Any] = {"limner.abort": self.transport.abort}
        self.scope["extensions"] = extensions
        if self.parser.should_upgrade() or self.count >= self.bounds.requests:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        self.first = 0.0
        super().on_message_complete()

    # What is refused ------------------------------------------------------------------------------------------

    def _stop(self, error: ApiError) -> None:
        """Refuse the request; from within the parser, which is left by an exception that it turns into its own."""
        self.refuse(error)
        raise ValueError

    def send_400_response(self, msg: str) -> None:
        """Called where the parser fails."""
        if self.refusal is None:
            self.refuse(INVALID)

    def refuse(self, error: ApiError) -> None:
        """Send an error, unless an answer has begun, and end the connection in a moment."""
        if self.refusal is not None or self.transport.is_closing():
            return
        self.refusal, self.ending = error, time.monotonic() + self.bounds.linger
        self._unset_keepalive_if_required()
        begun = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if begun:
            self.transport.abort()
            return
        self._flush()
        headers, body = error_parts(error)
        head = [*headers, *HEADERS, (b"x-request-id", new_id().encode()), (b"connection", b"close")]
        lines = [name + b": " + value + b"\r\n" for name, value in head]
        self.transport.write(b"".join([STATUS_LINE[error.status], *lines, b"\r\n", body]))
        # Closed at once, with bytes unread, the system would reset the connection before the client reads this.
        self.flow.resume_reading()
        with contextlib.suppress(OSError, NotImplementedError):
            self.transport.write_eof()

    # What takes too long --------------------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """End the connection where its time is over."""
        unsent = self.transport.get_write_buffer_size()
        if unsent:
            unsent += _in_system(self.transport)
        if unsent != self.unsent:
            self.unsent, self.moved = unsent, now
        if (unsent and now - self.moved > self.bounds.stall) or (self.refusal and now > self.ending):
            self.transport.abort()
        elif self.refusal is None and self.first and not self.transport.is_closing():
            self._look_at_request(now - self.first)

    def _look_at_request(self, seconds: float) -> None:
        if not self.headed and seconds > self.bounds.headers:
            if self.raw:
                self.refuse(LATE_HEAD)
            else:  # not a byte came
                self.close()
        elif self.headed and seconds > self.bounds.request:
            if self.cycle.response_complete:  # an answer that did not wait for the body
                self.close()
            else:
                self.refuse(LATE_BODY)


class _Joined:
    """What a request writes on its connection: an answer's head goes out with its body, by one call of the system."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop):
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        if len(data) > LARGE:  # which would be copied
            self.flush()
            self._transport.write(data)
            return
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(data)

    def flush(self) -> None:
        parts, self._parts = self._parts, []
        if parts and not self._transport.is_closing():
            self._transport.write(b"".join(parts))

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


def _in_system(transport: asyncio.Transport) -> int:
    """Bytes that the system keeps, which takes more only once a good part of them has gone: hundreds of kB."""
    count = array.array("i", [0])
    with contextlib.suppress(OSError):
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, count)
    return count[0]


def connections(bounds: Bounds) -> Callable[..., Connection]:
    """What uvicorn makes connections by."""
    return partial(Connection, bounds)


async def watch(open_connections: set[Any], bounds: Bounds) -> None:
    """Look at all connections now and then, for ever."""
    while True:
        await asyncio.sleep(bounds.tick)
        now = time.monotonic()
        for connection in list(open_connections):
            if isinstance(connection, Connection):
                connection.look(now)
