"""What stands before every route: the key, the size of the body, the host, the count of answers."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import time
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from refusalscope.guard.serve.faults import HUNG_UP, Fault, unforeseen
from refusalscope.guard.serve.meters import Meters
from refusalscope.guard.serve.settings import KEY_VARIABLE, ServeSettings

LOG = logging.getLogger("refusalscope.serve")
# Pages and checks that say nothing of any request.
OPEN = ("/health", "/playground", "/openapi.json", "/card")
# Asked for every few seconds by what watches the server.
WATCHED = ("/health", "/metrics")
ROUTES = (*OPEN, "/v1/moderations", "/v1/chat/completions", "/v1/models", "/metrics")


class Gate:
    """ASGI middleware. Whatever it turns away is answered in OpenAI's error shape."""

    def __init__(
        self, app: ASGIApp, settings: ServeSettings, meters: Meters, key: str | None
    ) -> None:
        self.app, self.settings, self.meters, self.key = app, settings, meters, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        route = scope["path"] if scope["path"] in ROUTES else "other"
        began, status = time.monotonic(), HUNG_UP

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            headers = {name.lower(): value for name, value in scope["headers"]}
            if route not in OPEN:
                self._check_caller(headers)
            replay = await self._whole_body(headers, receive)
            if replay is not None:
                await self.app(scope, replay, noted)
        except Fault as fault:
            await fault.response()(scope, receive, noted)
        except Exception as error:  # noqa: BLE001
            failed = unforeseen(error, f"a request to {route}")
            if status == HUNG_UP:
                await failed.response()(scope, receive, noted)
        finally:
            seconds = time.monotonic() - began
            self.meters.requests.labels(route, str(status)).inc()
            self.meters.seconds.labels(route).observe(seconds)
            level = logging.DEBUG if route in WATCHED else logging.INFO
            LOG.log(level, "%s %s %d in %.3f s", scope["method"], route, status, seconds)

    def _check_caller(self, headers: dict[bytes, bytes]) -> None:
        if self.key is None:
            # Without a key, a page of another site must not reach the server by a name of its own.
            if not is_loopback(_host(headers)):
                raise Fault(
                    403,
                    f"without a key the server answers loopback names only; set {KEY_VARIABLE}.",
                    code="foreign_host",
                )
            return
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        right = hmac.compare_digest(given.strip(), self.key.encode())
        if kind.lower() != b"bearer" or not right:
            raise Fault(
                401,
                "the API key is missing or wrong; send it as Authorization: Bearer KEY.",
                code="invalid_api_key",
            )

    async def _whole_body(self, headers: dict[bytes, bytes], receive: Receive) -> Receive | None:
        """Read the body before the route does, no further than the limit; None where the client hung up."""
        most = self.settings.max_body_bytes
        told = headers.get(b"content-length", b"0")
        if told.isdigit() and int(told) > most:
            raise _too_large(most)
        body = bytearray()
        more = True
        try:
            async with asyncio.timeout(self.settings.request_timeout_s):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > most:
                        raise _too_large(most)
        except TimeoutError:
            raise Fault(408, "the body did not come in time; send it again.") from None
        rest = iter([{"type": "http.request", "body": bytes(body), "more_body": False}])

        async def again() -> Any:
            return next(rest, None) or await receive()

        return again


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host(headers: dict[bytes, bytes]) -> str:
    """The host that a request names, without its port; empty where that is none."""
    try:
        return urlsplit(f"//{headers.get(b'host', b'').decode('latin-1')}").hostname or ""
    except ValueError:
        return ""


def _too_large(most: int) -> Fault:
    return Fault(
        413, f"the body is larger than {most} bytes; send less at a time.", code="body_too_large"
    )
