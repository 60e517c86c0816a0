"""The app: OpenAI's routes over one guard and the engine that owns its model."""

from __future__ import annotations

import logging
import os
import uuid
from asyncio import wrap_future
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from refusalscope import __version__
from refusalscope.errors import InputError
from refusalscope.guard.belief_guard import BeliefGuard
from refusalscope.guard.serve.answers import Answer
from refusalscope.guard.serve.categories import result
from refusalscope.guard.serve.faults import Fault, add_handlers
from refusalscope.guard.serve.gate import Gate
from refusalscope.guard.serve.orders import moderated_prompts, order_of
from refusalscope.guard.serve.served import Served
from refusalscope.guard.serve.settings import KEY_VARIABLE, ServeSettings
from refusalscope.guard.serve.waiting import Listener, Streamed, answered
from refusalscope.guard.serve.wire import ChatRequest, ModerationRequest
from refusalscope.guard.serve.wire_replies import (
    ChatReply,
    ErrorReply,
    ModelEntry,
    ModelList,
    ModerationReply,
)

LOG = logging.getLogger("refusalscope.serve")
# The page may run what stands in it and call this server; nothing else.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply} for status in (400, 401, 403, 408, 413, 429, 500, 503)
}


def create_app(guard: BeliefGuard, settings: ServeSettings | None = None) -> FastAPI:
    """The app of a calibrated guard. Its model belongs to the app while it runs.

    Raises GuardError for a guard without the operating point, InputError for a file that cannot be used.
    """
    settings = settings or ServeSettings()
    if settings.card is not None and not settings.card.is_file():
        raise InputError(f"there is no card at {settings.card}; write one, or leave the card out")
    served = Served(guard, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        served.engine.start()
        yield
        if not served.engine.drain(settings.drain_s):
            LOG.error("requests were left unfinished after %g s", settings.drain_s)

    app = FastAPI(
        title="refusalscope belief guard",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.served = served
    key = os.environ.get(KEY_VARIABLE) or None
    app.add_middleware(Gate, settings=settings, meters=served.meters, key=key)
    add_handlers(app)
    _add_model_routes(app, served)
    _add_other_routes(app, served)
    return app


def _add_model_routes(app: FastAPI, served: Served) -> None:
    settings, engine = served.settings, served.engine

    @app.post("/v1/moderations", responses=FAULTS)
    async def moderations(body: ModerationRequest, request: Request) -> ModerationReply:
        prompts = moderated_prompts(body.input, settings.max_inputs)
        found = wrap_future(engine.score(prompts))
        beliefs = await answered(request, found, settings.request_timeout_s)
        id = f"modr-{uuid.uuid4().hex}"
        for prompt, belief in zip(prompts, beliefs, strict=True):
            served.saw("/v1/moderations", f"{id}/{prompt.id}", belief, prompt.text)
        results = [result(belief, served.point.alpha, served.card) for belief in beliefs]
        return ModerationReply(id=id, model=served.guard_name, results=results)

    @app.post(
        "/v1/chat/completions",
        response_model=ChatReply,
        responses={
            200: {"content": {"text/event-stream": {}}},
            **FAULTS,
            404: {"model": ErrorReply},
        },
    )
    async def chat_completions(body: ChatRequest, request: Request) -> Any:
        order, shown = order_of(body, settings, served.guard, served.chat_name)
        listener = Listener(engine, order, settings.request_timeout_s)
        try:
            began = await answered(request, listener.began(), settings.request_timeout_s)
            served.saw("/v1/chat/completions", order.id, began.belief, order.prompt.text)
            answer = Answer(served, body, order, began, shown)
            if not body.stream:
                return await answered(request, answer.whole(listener), settings.request_timeout_s)
        except BaseException:
            listener.close()
            raise
        return Streamed(answer.stream(listener), listener)


def _add_other_routes(app: FastAPI, served: Served) -> None:
    @app.get("/v1/models")
    async def models() -> ModelList:
        names = (served.chat_name, served.guard_name)
        return ModelList(
            data=[ModelEntry(id=name, created=0, owned_by="refusalscope") for name in names]
        )

    @app.get("/health", responses={503: {"model": ErrorReply}})
    async def health() -> dict[str, str]:
        if not served.engine.ready:
            raise Fault(503, "the model's thread is not running.", code="stopping")
        return {"status": "ok", "model": served.chat_name, "blocking": served.settings.blocking}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(served.meters.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/playground", response_class=HTMLResponse)
    async def playground() -> HTMLResponse:
        page = files("refusalscope.guard.serve") / "playground.html"
        return HTMLResponse(
            page.read_text(encoding="utf-8"), headers={"Content-Security-Policy": POLICY}
        )

    if served.settings.card is not None:
        card = served.settings.card

        @app.get("/card", response_class=HTMLResponse)
        async def the_card() -> FileResponse:
            return FileResponse(card, media_type="text/html")
