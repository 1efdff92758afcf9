"""From the body of a request to what it asks for; one reader for each route."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from limner.serve.http import drawing, understanding
from limner.serve.http.asked import Asked, Caller, Engine, Route
from limner.serve.http.bodies import Form
from limner.serve.http.reading import Defaults, Reading, read
from limner.serve.http.tables import TABLES

READERS: Mapping[Route, Callable[[Reading], Asked]] = {
    "generation": drawing.draw,
    "edit": drawing.draw,
    "variation": drawing.draw,
    "embedding": understanding.embed,
    "classify": understanding.classify,
    "apply": understanding.apply,
}


def parse(
    route: Route, body: Mapping[str, Any] | None, form: Form | None, engine: Engine, caller: Caller,
    defaults: Defaults, job: bool = True,
) -> Asked:  # fmt: skip
    """What a request asks for, by its JSON (``body``) or its form; the other is None. Raises ApiError.

    A job is not streamed, keeps its partial images, and may say its ``type``. To read a job again with the seeds that
    it had, put the first of ``work.seeds`` into its body as ``seed``, unless it has ``between``.
    """
    return READERS[route](read(TABLES[route], body, form, engine, caller, defaults, job))
