"""An upload becomes a file of ours: counted while it streams in, under a name that we choose, gone after the answer.

The sender's file name is never read. Not more than one piece of the network's is in memory at a time.
"""

import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from jax_mtlser.serving.refusal import Refusal

__all__ = ["received"]

_MEGABYTE = 1_000_000
_MOST_SECONDS_OF_UPLOAD = 120.0
# Boundaries, headers and small fields around the file of a form.
_FORM_BYTES = 64 * 1024


@contextlib.asynccontextmanager
async def received(request: Request, folder: Path, max_megabytes: float) -> AsyncIterator[Path]:
    """The file that a request carries, as its body or as the only file of a multipart form.

    Args:
        request: whose body has not been read.
        folder: where the file lies until the context ends.
        max_megabytes: 10**6 bytes; more is refused as soon as it is announced or has arrived.

    Raises:
        Refusal: too large, too slow, empty, encoded, or a form without exactly one file.
    """
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise Refusal(415, f"content-encoding {encoding!r} is not decoded here; send the file as it is")
    limit = round(max_megabytes * _MEGABYTE)
    content, options = parse_options_header(request.headers.get("content-type"))
    form = content == b"multipart/form-data"
    _refuse_announced(request, limit + (_FORM_BYTES if form else 0), max_megabytes)
    handle, name = tempfile.mkstemp(dir=folder, prefix="upload_")
    path = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            counted = _Counted(file.write, limit, max_megabytes)
            with _told():
                with anyio.fail_after(_MOST_SECONDS_OF_UPLOAD):
                    if form:
                        await _read_form(request, options.get(b"boundary", b""), counted)
                    else:
                        async for chunk in request.stream():
                            counted.write(chunk)
        if not counted.bytes:
            raise Refusal(422, "empty: the recording has 0 bytes; send an audio file as the body, or in a form")
        yield path
    finally:
        path.unlink(missing_ok=True)


class _Counted:
    """Where bytes go, up to a limit."""

    def __init__(self, write: Callable[[bytes], Any], limit: int, max_megabytes: float) -> None:
        self._write, self._limit, self._max_megabytes = write, limit, max_megabytes
        self.bytes = 0

    def write(self, chunk: bytes) -> None:
        self.bytes += len(chunk)
        if self.bytes > self._limit:
            raise _too_large(f"more than {self._max_megabytes:g} MB", self._max_megabytes)
        self._write(chunk)


class _Form:
    """Finds the file of a multipart form while the form streams in."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._name, self._value = b"", b""
        self._in_file = False
        self.files, self.ended = 0, False

    def on_part_begin(self) -> None:
        self._in_file = False

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            self._in_file = b"filename" in options
        self._name, self._value = b"", b""

    def on_headers_finished(self) -> None:
        self.files += self._in_file
        if self.files > 1:
            raise Refusal(422, "the form has more than one file; send one recording at a time")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._write(data[start:end])

    def on_end(self) -> None:
        self.ended = True


async def _read_form(request: Request, boundary: bytes, counted: _Counted) -> None:
    form = _Form(counted.write)
    if not boundary:
        raise Refusal(422, "the multipart form has no boundary in its content-type; let the client set that header")
    arrived = 0
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": form.on_part_begin,
            "on_header_field": form.on_header_field,
            "on_header_value": form.on_header_value,
            "on_header_end": form.on_header_end,
            "on_headers_finished": form.on_headers_finished,
            "on_part_data": form.on_part_data,
            "on_end": form.on_end,
        },
    )
    async for chunk in request.stream():
        arrived += len(chunk)
        if arrived - counted.bytes > _FORM_BYTES + len(chunk):
            raise Refusal(413, f"the form has more than {_FORM_BYTES} bytes beside its file; send the file alone")
        parser.write(chunk)
    if not form.ended:
        raise Refusal(422, "the multipart form ends early; send it again")
    if not form.files:
        raise Refusal(422, "the form has no file; send the recording as a file field, as in curl -F file=@call.wav")


@contextlib.contextmanager
def _told() -> Any:
    try:
        yield
    except TimeoutError:
        raise Refusal(408, f"the upload took more than {_MOST_SECONDS_OF_UPLOAD:g} s; send a smaller file") from None
    except FormParserError as error:
        raise Refusal(422, f"not a multipart form: {error}") from None
    except ClientDisconnect:
        raise Refusal(400, "the connection was closed before the recording had arrived") from None


def _refuse_announced(request: Request, most: int, max_megabytes: float) -> None:
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced[:18]) > most:
        raise _too_large(f"{int(announced[:18]) / _MEGABYTE:.6g} MB", max_megabytes)


def _too_large(shown: str, max_megabytes: float) -> Refusal:
    return Refusal(
        413,
        f"too large: {shown}, above the limit of {max_megabytes:g} MB; send a shorter or compressed recording, or start "
        "jax-mtlser demo with a greater --max-megabytes",
    )
