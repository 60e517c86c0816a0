"""What can go wrong with a request, in OpenAI's error shape."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from refusalscope.guard.serve.wire_replies import ErrorBody, ErrorReply

LOG = logging.getLogger("refusalscope.serve")
KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
# How a request is counted whose client was gone before its answer.
HUNG_UP = 499
BLANK = "string_pattern_mismatch"
READINGS = ("str", "text", "image_url")
RETRY_AFTER = {"Retry-After": "1"}


class Fault(Exception):
    """An answer other than 200: one sentence, and which field it is about."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = "server_error" if self.status >= 500 else KINDS.get(self.status)
        error = ErrorBody(
            message=self.message,
            type=kind or "invalid_request_error",
            param=self.param,
            code=self.code,
        )
        return ErrorReply(error=error).model_dump()

    def response(self) -> JSONResponse:
        headers = RETRY_AFTER if self.status in (429, 503) else None
        return JSONResponse(self.body(), self.status, headers)


def unforeseen(error: Exception, place: str) -> Fault:
    """The answer to an unforeseen error. The log has its kind and line; its message may quote a prompt."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    line = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "no line"
    LOG.error("%s met %s at %s", place, type(error).__name__, line)
    return Fault(500, "the server failed on this request; its log names the error.")


def add_handlers(app: FastAPI) -> None:
    """Every error of the app leaves it in the same shape, never with the text of a request."""

    async def fault(request: Request, error: Any) -> JSONResponse:
        return error.response()

    async def invalid(request: Request, error: Any) -> JSONResponse:
        return _invalid(error.errors()).response()

    async def other(request: Request, error: Any) -> JSONResponse:
        made = Fault(error.status_code, f"{str(error.detail).rstrip('.')}.").response()
        made.headers.update(error.headers or {})
        return made

    app.add_exception_handler(Fault, fault)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, other)


def _invalid(errors: Sequence[Any]) -> Fault:
    """What is wrong with a body: of the readings of a field that takes several kinds, the nearest."""
    first = max(errors, key=lambda error: (error["type"] == BLANK, len(error["loc"])))
    if first["type"] == "json_invalid":
        return Fault(400, f"the body is not JSON: {first['ctx']['error']}.", code="invalid_json")
    # Parts such as list[constrained-str] name a reading and not a place.
    place = [
        str(part)
        for part in first["loc"][1:]
        if isinstance(part, int) or (part.isidentifier() and part not in READINGS)
    ]
    if not place:
        return Fault(
            400,
            "the body must be a JSON object, sent with the header Content-Type: application/json.",
            code="invalid_json",
        )
    param = ".".join(place)
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    if first["type"] == BLANK:
        message = "it is empty or blank; give it a text"
    return Fault(400, f"{param}: {message}.", param=param, code="invalid_value")
