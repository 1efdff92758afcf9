"""A request that was read and found good, and how its answer is made of what the engine says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from limner.serve.messages import Card, Event, Work

Route = Literal["generation", "edit", "variation", "embedding", "classify", "apply"]


@dataclass(frozen=True)
class Caller:
    """Who asks."""

    name: str = ""  # of the token; empty: the server has none
    address: str = ""
    request_id: str = ""

    def turn(self, identifier: str = "") -> str:
        """The name by which clients take turns: the token, else what the request says, else the address."""
        return (
            f"token:{self.name}"
            if self.name
            else f"user:{identifier}"
            if identifier
            else f"at:{self.address}"
        )


@dataclass(frozen=True)
class Asked:
    """What a request asks for. ``answer`` makes the body of the response of all image and answer events."""

    route: Route
    work: Work
    card: Card
    answer: Callable[[Sequence[Event]], dict[str, Any]]
    stream: bool = False
    # the server-sent event (its name, its JSON) that an engine event becomes while streaming; None: nothing
    streamed: Callable[[Event], tuple[str, dict[str, Any]] | None] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)  # such as x-limner-ignored
    digest: str = ""  # of what the request says, its route included: a body that is sent again has the same


class Answers(Protocol):
    """The events of one work, in order, until ``ended``. Closing it before then cancels the work."""

    def __aiter__(self) -> Answers: ...

    async def __anext__(self) -> Event: ...

    async def aclose(self) -> None: ...


class Engine(Protocol):
    """The engine, as the front sees it: EngineClient, or a fake one in tests."""

    cards: Mapping[str, Card]  # by id; empty until the first Ready

    @property
    def ready(self) -> bool: ...

    def number(self) -> int:
        """A new number for a work."""

    def submit(self, work: Work) -> Answers:
        """Raises ApiError 503 with Retry-After while there is no engine."""
