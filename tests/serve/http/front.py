"""The routes on a real socket, with the fake engine behind them: what their tests ask."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from limner.serve.http.asked import Asked, Caller
from limner.serve.http.errors import ApiError
from limner.serve.http.reading import Defaults
from limner.serve.http.routes import Routes
from tests.serve.fake_engine import FakeEngine, picture


@dataclass
class Front:
    """A server in a thread. ``asked`` holds what was admitted."""

    defaults: Defaults = field(default_factory=Defaults)
    asked: list[Asked] = field(default_factory=list)
    kept: dict[str, bytes] = field(default_factory=dict)
    address: str = ""

    @property
    def work(self):
        """The last work."""
        return self.engine.works[-1]

    def submit(self, asked, request):
        self.asked.append(asked)
        return self.engine.submit(asked.work)

    def keep(self, data, format):
        path = f"/v1/files/{len(self.kept)}.{format}"
        self.kept[path] = data
        return path

    def call(self, function, *arguments) -> Any:
        """Call it on the server's loop."""

        async def on_loop():
            return function(*arguments)

        return asyncio.run_coroutine_threadsafe(on_loop(), self.loop).result(5)

    def reset(self, **settings) -> None:
        """A new engine."""
        self.asked.clear()
        engine = self.call(lambda: FakeEngine(**settings))
        self.engine = self.routes.engine = engine

    def hold(self) -> None:
        """The engine draws nothing before ``go``."""
        self.engine.held = self.call(asyncio.Event)

    def go(self) -> None:
        self.call(self.engine.held.set)

    def client(self, kind=openai.OpenAI, **settings):
        """Of the openai package, which does not ask again."""
        return kind(base_url=f"{self.address}/v1", api_key="none", max_retries=0, **settings)

    def post(self, path: str, body: Any = None, **more) -> httpx2.Response:
        """JSON, as bytes or an object; or a form, by ``data`` and ``files``."""
        if body is not None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            more = {"content": content, "headers": {"content-type": "application/json"}} | more
        return self.http.post(self.address + path, **more)


async def failed(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, error.headers)


async def left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


@contextlib.contextmanager
def front(**defaults):
    """A server on a free port."""
    here = Front()
    here.defaults = Defaults(keep=here.keep, **defaults)
    here.engine = None
    here.routes = Routes(None, here.submit, lambda request: Caller(address="here"), here.defaults)
    app = Starlette(
        routes=here.routes.mounted(), exception_handlers={ApiError: failed, ClientDisconnect: left}
    )
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, http="httptools", log_level="warning", lifespan="off")
    )
    started = threading.Event()

    async def serve():
        here.loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(server.serve())
        while not server.started:
            await asyncio.sleep(0.005)
        here.address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        started.set()
        await task

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert started.wait(10)
    here.http = httpx2.Client(timeout=10)
    here.reset()
    try:
        yield here
    finally:
        here.http.close()
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def said(response, status: int, code: str | None = None, param: str | None = None) -> str:
    """The message of an error, once its form is checked."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    if code is not None:
        assert (error["code"], error["param"]) == (code, param), error
    message = error["message"]
    assert "Traceback" not in message and "/" not in message.replace("application/json", "").replace(
        "multipart/form-data", ""
    ).replace("data:image/png;base64", "").replace("house/labels", "")
    assert message.endswith((".", "?")) and len(message) < 400
    return message


PICTURE = picture(1, 8, 8)
MASK = picture(2, 8, 8, alpha=0)
