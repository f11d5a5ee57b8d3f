"""The web application: a page, an endpoint, and one model that answers one request after the other."""

import asyncio
import contextlib
import importlib.resources
import tempfile
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from jax_mtlser.inference.recognizer import Recognizer
from jax_mtlser.serving.answering import Question, answer
from jax_mtlser.serving.examples import Example
from jax_mtlser.serving.guard import Guard
from jax_mtlser.serving.refusal import Refusal
from jax_mtlser.serving.uploads import received

__all__ = ["MOST_AT_ONCE", "build_app"]

MOST_AT_ONCE = 16
"""Uploads that arrive, wait or are judged; with the limit of one, they bound what lies on the disk."""

_FILES = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}


def build_app(
    recognizer: Recognizer,
    *,
    title: str = "jax_mtlser",
    max_seconds: float = 300.0,
    max_megabytes: float = 25.0,
    examples: Sequence[Example] = (),
    hosts: Iterable[str] | None = (),
) -> Starlette:
    """Put a recognizer behind HTTP.

    ``GET /`` is the page, ``POST /predict`` answers for the recording in its body (or for the file of a multipart
    form), ``GET /about`` tells the model and the limits, ``GET /health`` that the server is there, and
    ``GET /examples/N`` gives a recording. Refusals are JSON with a key ``error``.

    Args:
        recognizer: the models.
        title: shown on the page.
        max_seconds, max_megabytes: of a recording.
        examples: offered on the page.
        hosts: names it may be asked under, beside this machine's own; None: any.
    """
    return Starlette(
        routes=_Desk(recognizer, title, max_seconds, max_megabytes, examples).routes(),
        middleware=[Middleware(Guard, hosts=hosts)],
        exception_handlers={Refusal: _refused, HTTPException: _refused_by_route, Exception: _failed},
        lifespan=_lifespan,
    )


@contextlib.asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    with tempfile.TemporaryDirectory(prefix="jax_mtlser_uploads_") as folder:
        app.state.uploads = Path(folder)
        yield


class _Desk:
    """Takes requests and has one of them at a time judged."""

    def __init__(
        self, recognizer: Recognizer, title: str, max_seconds: float, max_megabytes: float, examples: Sequence[Example]
    ) -> None:
        self._recognizer, self._title, self._examples = recognizer, title, examples
        self._max_seconds, self._max_megabytes = max_seconds, max_megabytes
        self._model, self._inside = asyncio.Lock(), 0

    def routes(self) -> list[Route]:
        return [
            *(Route(path, _file(*content), methods=["GET"]) for path, content in _FILES.items()),
            Route("/predict", self.predict, methods=["POST", "PUT"]),
            Route("/about", self.about, methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/examples/{number:int}", self.example, methods=["GET"]),
        ]

    async def predict(self, request: Request) -> Response:
        question = Question.parse(request.query_params)
        if self._inside >= MOST_AT_ONCE:
            raise Refusal(503, f"{MOST_AT_ONCE} recordings are being answered, the most at once; try again soon")
        self._inside += 1
        try:
            async with received(request, request.app.state.uploads, self._max_megabytes) as path, self._model:
                said = await run_in_threadpool(answer, self._recognizer, path, question, self._max_seconds)
        finally:
            self._inside -= 1
        return JSONResponse(said)

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def about(self, request: Request) -> Response:
        limits, recognizer = self._recognizer.limits, self._recognizer
        about: dict[str, Any] = {
            "title": self._title,
            "members": [member.name for member in recognizer.members],
            "emotions": recognizer.emotions,
            "genders": recognizer.genders,
            "transcript": "asr" in recognizer.tasks,
            "calibrated": recognizer.calibrated,
            "max_seconds": self._max_seconds,
            "max_megabytes": self._max_megabytes,
            "window_seconds": [limits.min_seconds, limits.max_seconds],
            "examples": [{"name": one.name, "reference": one.reference} for one in self._examples],
        }
        return JSONResponse(about)

    async def example(self, request: Request) -> Response:
        number: int = request.path_params["number"]
        if number >= len(self._examples):
            raise HTTPException(404)
        return Response(self._examples[number].wav, media_type="audio/wav")


def _file(name: str, media_type: str) -> Any:
    content = (importlib.resources.files("jax_mtlser.serving") / name).read_bytes()

    async def give(request: Request) -> Response:
        return Response(content, media_type=media_type)

    return give


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    # What is left of the body is not read, so the connection cannot be used again.
    headers = {"connection": "close"} if error.status in (403, 408, 413, 503) else {}
    return JSONResponse({"error": str(error)}, error.status, headers)


async def _refused_by_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:80]}"
    known = "POST /predict, GET /about, GET /health"
    return JSONResponse({"error": f"there is no {where}; there are {known}"}, error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "something went wrong here; the server's output tells what"}, 500)
