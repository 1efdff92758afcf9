"""Who asks: tokens, one a name, and the failures of those who guess them."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
import stat
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from limner.serve.http.asked import Caller
from limner.serve.http.errors import ApiError
from limner.serve.http.guards import send_error
from limner.settings import LimnerError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)
FAILURES, WINDOW = 10, 60.0  # of one address, in so many seconds
ADDRESSES = 4096  # that are remembered; of more, the oldest are forgotten
OPEN = "/health"  # for which no token is needed


def read_tokens(path: str) -> dict[str, bytes]:
    """Name -> hash of its token, from a file with a name and a token on each line.

    Raises LimnerError for a file that others may read, and for lines that are not so.
    """
    flag = f"--token-file {path}"
    try:
        with open(path, "rb") as file:
            about = os.fstat(file.fileno())
            lines = file.read(2**20).decode("utf-8", "replace").splitlines()
    except OSError as error:
        raise LimnerError(f"{flag} cannot be read ({error.strerror}): name a file of tokens.") from None
    if not stat.S_ISREG(about.st_mode) or stat.S_IMODE(about.st_mode) & 0o077:
        raise LimnerError(f"{flag} can be read by others: chmod 600 {Path(path).name}.")
    found: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or not NAME.fullmatch(words[0]) or not words[1].isascii():
            raise LimnerError(
                f"{flag}, line {number} is not a name and a token: write both, with a space between."
            )
        name, hashed = words[0], hashlib.sha256(words[1].encode()).digest()
        if name in found or hashed in found.values():
            raise LimnerError(
                f"{flag}, line {number} repeats a name or a token: give each person one of their own."
            )
        found[name] = hashed
    if not found:
        raise LimnerError(f"{flag} holds no token: write a name and a token on a line.")
    return found


def find_name(tokens: Mapping[str, bytes], given: bytes) -> str:
    """Whose token it is, or ''. All are compared, each in a time that does not depend on where they differ."""
    hashed, found = hashlib.sha256(given).digest(), ""
    for name, token in tokens.items():
        if hmac.compare_digest(hashed, token):
            found = name
    return found


class Failures:
    """Of each address in the last minute."""

    def __init__(self, most: int = FAILURES, window: float = WINDOW):
        self.most, self.window = most, window
        self.times: OrderedDict[str, deque[float]] = OrderedDict()

    def add(self, address: str) -> None:
        times = self.times.setdefault(address, deque(maxlen=self.most))
        times.append(time.monotonic())
        self.times.move_to_end(address)
        while len(self.times) > ADDRESSES:
            self.times.popitem(last=False)

    def wait(self, address: str) -> float:
        """Seconds until the address may try again; 0: now."""
        times = self.times.get(address)
        if times is None or len(times) < self.most:
            return 0.0
        return max(0.0, times[0] + self.window - time.monotonic())


def network(address: str) -> str:
    """The address, or of one of IPv6 its network: whoever has one has all of it."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 4:
        return str(parsed)
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), 64), strict=False))


class Door:
    """Lets in whoever has a token, or everybody where there are none; says who it is as ``state["caller"]``."""

    def __init__(self, app: ASGIApp, tokens: Mapping[str, bytes], failures: Failures | None = None):
        self.app, self.tokens, self.failures = app, tokens, failures or Failures()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state, client = scope["state"], scope.get("client")
        address, name = client[0] if client else "", ""
        if self.tokens and scope["path"] != OPEN:
            try:
                name = self._name(scope, network(address))
            except ApiError as error:
                await send_error(send, error)
                return
        state["caller"] = Caller(name, address, state["request_id"])
        await self.app(scope, receive, send)

    def _name(self, scope: Scope, address: str) -> str:
        wait = self.failures.wait(address)
        if wait:
            raise ApiError(
                429, "There were too many wrong tokens from your address: wait a minute.", "too_many_failures",
                headers={"Retry-After": str(int(wait) + 1)},
            )  # fmt: skip
        given = [value for key, value in scope["headers"] if key == b"authorization"]
        if not given:
            raise _unknown("A token is missing")
        kind, _, token = given[0].partition(b" ")
        known = len(given) == 1 and kind.lower() == b"bearer"
        name = find_name(self.tokens, token.strip()) if known else ""
        if not name:
            self.failures.add(address)
            raise _unknown("The token is not one of this server's")
        return name


def _unknown(what: str) -> ApiError:
    return ApiError(
        401, f"{what}: send one as api_key, in the header Authorization: Bearer.", "invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )  # fmt: skip
