"""An engine without a network: what the front's tests draw by. Its pictures are one colour, which the seed chooses."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace

from PIL import Image

from limner.serve.http.errors import ApiError
from limner.serve.messages import Card, Event, Knob, Work

KNOBS = (
    Knob("steps", "integer", 8, "network calls", least=1),
    Knob("solver", "string", "euler", "how the levels are walked", choices=("euler", "heun", "dpm2m")),
    Knob("guidance", "number", 1.0, "how much the condition counts", least=0, most=20),
    Knob("strength", "number", 0.6, "how far a given picture is changed", least=0, most=1, above=True),
    Knob("repaints", "integer", 1, "rounds of repainting each step", least=1),
    Knob("churn", "number", 0.0, "noise put back", least=0, most=1, below=True),
    Knob("clip", "boolean", True, "keep the guess within its range"),
    Knob("interval", "list", (0.0, 1.0), "levels that are guided"),
    Knob("autoguidance", "string", "", "a weaker model", model=True),
)
PLAIN = Card(
    "plain", "toy", 8, 12, 3, ("draw",), ("image", "mask"), (), KNOBS, 1_700_000_000, "d1", "limner-plain-1"
)
LABELS = Card(
    "house/labels", "toy", 16, 16, 4, ("draw",), ("label", "image", "mask", "blend"), ("cat", "dog", "fox"), KNOBS,
    1_700_000_001, "d2", "limner-labels-1",
)  # fmt: skip
TEXT = Card(
    "text", "toy", 8, 8, 3, ("draw",), ("text", "image", "mask"), (), KNOBS, 1_700_000_002, "d3", "limner-text-1"
)  # fmt: skip
EYES = Card(
    "eyes", "toy", 8, 8, 3, ("embed", "classify"), (), ("cat", "dog", "fox"), (), 1_700_000_003, "d4",
    "limner-eyes-1", features=4,
)  # fmt: skip
GIVEN = Card(
    "upscale", "toy", 8, 8, 3, ("apply",), ("given",), (), (Knob("steps", "integer", 4, "network calls", least=1),),
    1_700_000_004, "d5", "limner-upscale-1", scale=2,
)  # fmt: skip
CARDS = (PLAIN, LABELS, TEXT, EYES, GIVEN)


def colour(seed: int) -> tuple[int, int, int]:
    """The colour of a seed's picture."""
    mixed = (seed * 2_654_435_761 + 97) % 2**24
    return mixed >> 16, mixed >> 8 & 255, mixed & 255


def picture(
    seed: int = 0, height: int = 8, width: int = 8, format: str = "png", alpha: int | None = None
) -> bytes:
    """An encoded picture of the seed's colour, with one alpha everywhere or none."""
    fill = colour(seed) if alpha is None else (*colour(seed), alpha)
    file = io.BytesIO()
    Image.new("RGB" if alpha is None else "RGBA", (width, height), fill).save(file, format.upper())
    return file.getvalue()


class FakeAnswers:
    """The events of one work."""

    def __init__(self, engine: FakeEngine, work: Work):
        self.engine, self.work = engine, work
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.over = False
        self.task = asyncio.get_running_loop().create_task(engine.draw(work, self.events.put_nowait))

    def __aiter__(self) -> FakeAnswers:
        return self

    async def __anext__(self) -> Event:
        if self.over:
            raise StopAsyncIteration
        event = await self.events.get()
        if event.kind == "ended":
            self.over = True
        return event

    async def aclose(self) -> None:
        if not self.over:
            self.over = True
            self.engine.cancelled.append(self.work.id)
            self.task.cancel()


class FakeEngine:
    """``Engine`` of limner/serve/http/asked.py on one event loop.

    ``seconds`` pass for each image; while ``held`` is not None, nothing is drawn before it is set; ``fails`` is the
    event with which every work ends, and ``stops`` says that there is no engine.
    """

    def __init__(
        self, cards: Sequence[Card] = CARDS, seconds: float = 0.0, held: asyncio.Event | None = None,
        fails: Event | None = None,
    ):  # fmt: skip
        self.cards: Mapping[str, Card] = {card.id: card for card in cards}
        self.seconds, self.held, self.fails = seconds, held, fails
        self.fails_at = -1  # the image that fails; -1: the whole work, before its first
        self.stops = False
        self.works: list[Work] = []
        self.cancelled: list[int] = []
        self.drawn: list[tuple[int, int]] = []  # work, image
        self.last = 0

    @property
    def ready(self) -> bool:
        return bool(self.cards) and not self.stops

    def number(self) -> int:
        self.last += 1
        return self.last

    def submit(self, work: Work) -> FakeAnswers:
        if not self.ready:
            raise ApiError(
                503, "The engine starts: try again.", "engine_starting", headers={"Retry-After": "1"}
            )
        self.works.append(work)
        return FakeAnswers(self, work)

    async def draw(self, work: Work, put) -> None:
        """Put the events of a work."""
        try:
            steps = int(work.settings.get("steps", 8) * work.scale_steps)
            put(Event(work.id, "accepted", evaluations=steps))
            if self.held is not None:
                await self.held.wait()
            await asyncio.sleep(0)
            if self.fails is not None and self.fails_at < 0:
                put(replace(self.fails, work=work.id))
                put(Event(work.id, "ended"))
                return
            put(Event(work.id, "begun"))
            number = len(work.seeds) if work.kind == "draw" else max(1, len(work.pictures))
            for index in range(number):
                if self.fails is not None and self.fails_at == index:
                    put(replace(self.fails, work=work.id, index=self.fails_at))
                    break
                await self._one(work, index, steps, put)
        except asyncio.CancelledError:
            put(Event(work.id, "ended", cancelled=True))
            raise
        put(Event(work.id, "ended"))

    async def _one(self, work: Work, index: int, steps: int, put) -> None:
        card = self.cards[work.model]
        if work.kind == "embed":
            put(Event(work.id, "answer", index, value=[0.5 * (index + 1), -1.0, 0.25, 3.0][: card.features]))
        elif work.kind == "classify":
            share = [0.5, 0.3, 0.2]
            put(Event(work.id, "answer", index, value=[*map(list, zip(card.labels, share, strict=False))]))
        elif work.kind == "apply":
            with Image.open(io.BytesIO(work.pictures[index])) as given:
                sides = given.height * card.scale, given.width * card.scale
            put(self._image(work, index, work.seeds[index], *sides, steps))
        else:
            form = work.form
            sides = form.height or card.height, form.width or card.width
            seed = work.seeds[index]
            for number in range(work.partials):
                await asyncio.sleep(self.seconds / (work.partials + 1))
                made = picture(seed + number + 1, *sides, form.format)
                put(Event(work.id, "partial", index, number, data=made))
            await asyncio.sleep(self.seconds / (work.partials + 1))
            put(self._image(work, index, seed, *sides, steps))
        self.drawn.append((work.id, index))

    def _image(self, work: Work, index: int, seed: int, height: int, width: int, steps: int) -> Event:
        card = self.cards[work.model]
        alpha = 128 if card.channels == 4 and work.form.transparent and work.form.format != "jpeg" else None
        data = picture(seed, height, width, work.form.format, alpha)
        return Event(
            work.id, "image", index, evaluations=steps, seconds=self.seconds, seed=seed, data=data,
            fingerprint=card.fingerprint,
        )  # fmt: skip
