"""What every request passes first: whose page it comes from, and that every answer is told in one way.

A page of another site can send requests to this machine, and under DNS rebinding even read the answers, with a Host
and an Origin that are equal and both foreign. So each is compared with our own names, not with the other.
"""

from __future__ import annotations

import json
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from limner.serve.http.errors import ApiError

WILDCARDS = "0.0.0.0", "::", ""
BODIES = b"application/json", b"multipart/form-data"
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
)
UNKNOWN = "There is no such route here: openapi.json names those that there are."

Observe = Callable[[str, str, int, float], None]  # path, method, status (0: none was sent), seconds


def new_id() -> str:
    """Of a request."""
    return f"req_{secrets.token_hex(12)}"


def error_parts(error: ApiError) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of the answer that an error is."""
    body = json.dumps(error.body()).encode()
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in error.headers.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    return headers, body


async def send_error(send: Send, error: ApiError) -> None:
    headers, body = error_parts(error)
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def own_origins(host: str, port: int, names: Iterable[str]) -> dict[str, set[str]]:
    """Each value that Host may have, with the origins of pages that come from there.

    ``names`` are those by which clients reach us, perhaps through a proxy: with a port of their own, or with ours or
    none, and by https too.
    """
    with_port = {"127.0.0.1", "localhost", "[::1]"}
    if host not in WILDCARDS:
        with_port.add(f"[{host}]" if ":" in host else host.lower())
    found = {f"{name}:{port}": {f"http://{name}:{port}"} for name in with_port}
    if port == 80:  # which browsers leave out
        found |= {name: {f"http://{name}"} for name in with_port}
    for name in map(str.lower, names):
        has_port = ":" in name.rpartition("]")[2]
        for value in (name,) if has_port else (name, f"{name}:{port}"):
            found[value] = {f"http://{value}", f"https://{value}"}
    return found


class Guard:
    """The outermost layer. ``origins`` is what ``own_origins`` gives; ``observe`` is told of every answer."""

    def __init__(self, app: ASGIApp, origins: dict[str, set[str]], observe: Observe | None = None):
        self.app, self.origins, self.observe = app, origins, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            return
        identity, began = new_id(), time.perf_counter()
        scope.setdefault("state", {})["request_id"] = identity
        answer = _Answer(send, identity)
        try:
            refused = self.refusal(scope)
            if refused:
                await send_error(answer.send, refused)
            else:
                await self.app(scope, receive, answer.send)
        except ClientDisconnect:
            pass
        except ApiError as error:
            if not answer.status:
                await send_error(answer.send, error)
        except Exception as error:
            _log(identity, error)
            if not answer.status:
                await send_error(answer.send, broken())
            elif not answer.over:
                raise ConnectionAbortedError from None  # the server then closes the connection
        finally:
            if self.observe:
                seconds = time.perf_counter() - began
                self.observe(scope["path"], scope["method"], answer.status, seconds)

    def refusal(self, scope: Scope) -> ApiError | None:
        """Why a request is not let in; None: it is."""
        found: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            found.setdefault(name, []).append(value)
        return self._foreign(found) or _unread(scope["method"], found)

    def _foreign(self, found: dict[bytes, list[bytes]]) -> ApiError | None:
        hosts = found.get(b"host", [])
        if len(hosts) != 1:
            how = "no Host" if not hosts else "several Hosts"
            return ApiError(400, f"The request has {how}: send exactly one.", "invalid_host")
        origins = self.origins.get(hosts[0].decode("latin-1").lower())
        if origins is None:
            return ApiError(
                403, "This server does not go by that name: use its address, or ask who runs it to add the name.",
                "foreign_host",
            )  # fmt: skip
        given = found.get(b"origin", [])
        if given and (len(given) > 1 or given[0].decode("latin-1").lower() not in origins):
            return ApiError(403, "Pages of other sites may not use this server.", "foreign_origin")
        sites = found.get(b"sec-fetch-site", [])
        if sites and (len(sites) > 1 or sites[0] not in (b"same-origin", b"none")):
            return ApiError(403, "Pages of other sites may not use this server.", "foreign_origin")
        return None


def _unread(method: str, found: dict[bytes, list[bytes]]) -> ApiError | None:
    """Why the body, or the protocol that is wished for, is not one that is read here."""
    if any(b"websocket" in value.lower() for value in found.get(b"upgrade", [])):
        return ApiError(400, "There are no WebSockets here: use an ordinary request.", "no_websocket")
    if method == "POST" and b"upgrade" in found:  # its body would be taken for the other protocol
        return ApiError(400, "Only HTTP/1.1 is spoken here: send no Upgrade.", "no_upgrade")
    codings = found.get(b"content-encoding", [])
    if any(value.strip().lower() not in (b"", b"identity") for value in codings):
        return ApiError(
            415, "Compressed bodies are not read: send it without Content-Encoding.", "unsupported_encoding"
        )
    kinds = found.get(b"content-type", [])
    if method == "POST" and (len(kinds) != 1 or kinds[0].split(b";")[0].strip().lower() not in BODIES):
        return ApiError(
            415, "This content type is not read: send application/json, or a form as multipart/form-data.",
            "unsupported_media_type",
        )  # fmt: skip
    return None


def broken() -> ApiError:
    """For a mistake of ours; what it was stands in the server's own output."""
    return ApiError(500, "The server made a mistake: try again, or ask who runs it.", "server_error")


def _log(identity: str, error: BaseException) -> None:
    """Where it happened. The error's own words may hold what a person wrote, so they are left out."""
    stack = "".join(traceback.format_tb(error.__traceback__))
    print(f"limner: {identity} ended by {type(error).__name__}\n{stack}", file=sys.stderr, flush=True)


class _Answer:
    """What is sent, with the headers that every answer has."""

    def __init__(self, send: Send, identity: str):
        self._send, self._identity = send, identity.encode()
        self.status, self.over = 0, False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers: list[tuple[bytes, bytes]] = list(message.get("headers", []))
            present = {name.lower() for name, _ in headers}
            headers += [(name, value) for name, value in HEADERS if name not in present]
            headers.append((b"x-request-id", self._identity))
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body":
            self.over = not message.get("more_body", False)
        await self._send(message)


def plain_error(status: int, allowed: Any = None) -> ApiError:
    """The error of a status that the router gives."""
    if status == 404:
        return ApiError(404, UNKNOWN, "not_found")
    if status == 405:
        allowed = allowed and ", ".join(sorted(allowed.split(", ")))
        message = f"This route does not take that method: use {allowed or 'another one'}."
        return ApiError(405, message, "method_not_allowed", headers={"Allow": allowed} if allowed else {})
    if status >= 500:
        return broken()
    return ApiError(status, "The request cannot be read: openapi.json says how it is written.")
