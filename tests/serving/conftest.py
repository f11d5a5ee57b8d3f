"""One tiny run behind HTTP for all tests of serving."""

import contextlib
import select
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
import uvicorn
from starlette.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

from sounds import MAX_MEGABYTES, MAX_SECONDS, wav
from tiny import short_run, write_corpus

from jax_mtlser.inference.recognizer import Recognizer
from jax_mtlser.serving.app import build_app
from jax_mtlser.serving.examples import Example


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="session")
def run(corpus, tmp_path_factory) -> Path:
    """One member."""
    return short_run(corpus, tmp_path_factory.mktemp("runs") / "run", only_folds=(0,))


@pytest.fixture(scope="session")
def recognizer(run) -> Recognizer:
    return Recognizer.load(run)


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> Path:
    """Where every temporary file of this process goes."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
def app(recognizer):
    examples = [Example("one", "sad", wav(0.5))]
    return build_app(recognizer, title="tiny", max_seconds=MAX_SECONDS, max_megabytes=MAX_MEGABYTES, examples=examples)


@pytest.fixture
def client(app, scratch):
    with TestClient(app, base_url="http://127.0.0.1:7860") as client:
        yield client


class Server:
    """A real server of the application, in a thread, asked through plain sockets."""

    def __init__(self, app) -> None:
        self._app = app
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._address = self._listener.getsockname()
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))

    def __enter__(self) -> "Server":
        self._thread.start()
        wait_for(lambda: self._server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        self._listener.close()

    @property
    def uploads(self) -> Path:
        return self._app.state.uploads

    def raw(self, request: bytes) -> bytes:
        """Send and read until the server closes."""
        with socket.create_connection(self._address, timeout=30) as connection:
            connection.sendall(request)
            return read_all(connection)

    def flood(self, head: bytes, piece: bytes) -> tuple[bytes, int]:
        """Send without end, until there is an answer; returns it, and how much was sent."""
        with socket.create_connection(self._address, timeout=30) as connection:
            connection.sendall(head)
            sent, reply = 0, b""
            # A server that closes before it has read everything resets the connection, which may swallow its answer.
            with contextlib.suppress(ConnectionError):
                while sent < 500e6 and not select.select([connection], [], [], 0)[0]:
                    connection.sendall(piece)
                    sent += len(piece)
                reply = connection.recv(65_536)
            return reply, sent

    def leave(self, request: bytes) -> None:
        """Send, wait until the upload lies there, and close; wait until that is noticed."""
        with socket.create_connection(self._address, timeout=30) as connection:
            connection.sendall(request)
            wait_for(lambda: list(self.uploads.iterdir()))
        wait_for(lambda: not list(self.uploads.iterdir()))


def read_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65_536):
        parts.append(part)
    return b"".join(parts)


def wait_for(condition) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def server(app, scratch):
    with Server(app) as server:
        yield server
