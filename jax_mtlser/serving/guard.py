"""Who may ask: pages of this server and programs, but no other site that a browser has open."""

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Guard", "is_loopback"]

# Nothing is loaded from anywhere else, nothing is stored, nobody may frame the page.
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "cache-control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """Refuses requests that a foreign web page makes a browser send, and adds headers to every answer.

    There is no authentication, so this is what stands between any page on the web and a server on this machine: a
    page of another origin is told so by the browser's own headers, and one that makes its name point here (DNS
    rebinding) by the name that was asked for.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] | None) -> None:
        """Wrap an application.

        Args:
            app: what is guarded.
            hosts: names that it may be asked under, beside this machine's own; None: any.
        """
        self._app, self._hosts = app, None if hosts is None else frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        reason = self._reason(Headers(scope=scope), scope["method"])
        answer: ASGIApp = self._app if reason is None else JSONResponse({"error": reason}, 403)
        await answer(scope, receive, send_with_headers)

    def _reason(self, headers: Headers, method: str) -> str | None:
        host = headers.get("host", "")
        name = _name(f"//{host}")
        if self._hosts is not None and name not in self._hosts and not is_loopback(name):
            return f"asked as {name[:80]!r}, which is not a name of this server; use the address that it printed"
        if method in ("GET", "HEAD"):
            return None
        origin = headers.get("origin")
        foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if foreign or (origin is not None and urlsplit(origin).netloc != host):
            return f"asked by a page of {str(origin)[:80]!r}; only this server's own page and programs may"
        return None


def _name(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""
