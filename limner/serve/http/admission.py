"""Who may have something drawn now: the queue's bounds, the start and the end of the server, requests sent again."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from limner.serve.http.asked import Answers, Asked, Caller, Engine
from limner.serve.http.errors import ApiError
from limner.serve.http.guards import send_error
from limner.serve.http.metrics import Meters
from limner.serve.http.places import Places, price
from limner.serve.http.recent import Flight, Recent

ARRIVING = 2**29  # bytes of bodies
RETRY = "x-stainless-retry-count"  # 0 at the first try of a client of OpenAI's


def caller_of(request: Request) -> Caller:
    found: Caller = request.scope["state"]["caller"]
    return found


def ending() -> ApiError:
    return ApiError(
        503, "The server is ending: try again in a moment.", "shutting_down", headers={"Retry-After": "5"}
    )


class Admission:
    """Takes works in, and knows all that are under way."""

    def __init__(self, engine: Engine, most: int, most_client: int, meters: Meters):
        self.engine, self.meters = engine, meters
        self.places = Places(most, most_client, meters)
        self.recent = Recent()
        self.flights: set[Flight] = set()
        self.draining = False

    def check_open(self) -> None:
        """Raises ApiError 503 at the end of the server."""
        if self.draining:
            self.meters.refused["shutting_down"] += 1
            raise ending()

    def submit(self, asked: Asked, request: Request) -> Answers:
        """The events of what is asked, or of the same that was asked before. Raises ApiError 429 or 503."""
        caller, tries = caller_of(request), request.headers.get(RETRY)
        key = (caller.name or caller.address, asked.digest) if tries and asked.digest else None
        if key and tries != "0" and (first := self.recent.find(key)):
            self.meters.joined[asked.work.model, caller.name] += 1
            return first.listen()
        self.check_open()
        place = self.places.enter(asked.work, caller.name, price(asked.work, asked.card))
        try:
            answers = self.engine.submit(asked.work)
        except BaseException:
            place.leave()
            raise
        flight = Flight(asked, answers, place)
        self.flights.add(flight)
        flight.task.add_done_callback(lambda _: self.flights.discard(flight))
        if key:
            self.recent.add(key, flight)
        return flight.listen()

    async def aclose(self) -> None:
        """Cancel what is under way."""
        for flight in list(self.flights):
            await flight.end(ending())


class Gate:
    """Refuses new work before its body is read, where it would be refused whatever it says.

    ``most`` bounds the bytes of all bodies that are arriving.
    """

    def __init__(self, app: ASGIApp, admission: Admission, most: int = ARRIVING):
        self.app, self.admission, self.most = app, admission, most
        self.arriving = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self.refusal(scope) if scope["method"] == "POST" else None
        if error:
            await send_error(send, error)
            return
        mine = 0

        async def counted() -> Message:
            nonlocal mine
            message = await receive()
            size = len(message.get("body", b"")) if message.get("more_body") else -mine
            mine += size
            self.arriving += size
            if self.arriving > self.most:
                raise ApiError(
                    503, "Too much is being sent here: try again in a moment.", "too_many_bytes",
                    headers={"Retry-After": "2"},
                )  # fmt: skip
            return message

        try:
            await self.app(scope, counted, send)
        finally:
            self.arriving -= mine

    def refusal(self, scope: Scope) -> ApiError | None:
        """Why; None: the request is to be read."""
        admission = self.admission
        if not admission.engine.cards:
            return ApiError(
                503,
                "The models are being loaded: try again.",
                "engine_starting",
                headers={"Retry-After": "1"},
            )
        if not admission.draining and not admission.places.full:
            return None
        if any(
            name == b"idempotency-key" or (name == RETRY.encode() and value != b"0")
            for name, value in scope["headers"]
        ):  # it may be answered by what was asked before
            return None
        if admission.draining:
            return ending()
        return admission.places.refused("queue_full", "Too many images wait here: try again in a while.")
