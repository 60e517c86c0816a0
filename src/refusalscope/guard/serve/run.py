"""The server's process: where it listens, and how it stops."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from refusalscope.errors import InputError
from refusalscope.guard.belief_guard import BeliefGuard
from refusalscope.guard.serve.settings import KEY_VARIABLE, ServeSettings

if TYPE_CHECKING:
    import uvicorn

# What uvicorn may take for the answers themselves, above what the engine is given.
GRACE_S = 5
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {
        "refusalscope.serve": {"handlers": ["stderr"], "level": "INFO"},
        "uvicorn": {"handlers": ["stderr"], "level": "WARNING"},
    },
}


def serve(guard: BeliefGuard, settings: ServeSettings | None = None) -> None:
    """Serve a guard until SIGTERM or SIGINT; requests in flight are finished, new ones refused.

    Raises InputError without the extra `serve`, for a host beyond loopback without a key, and where the
    port is taken; GuardError for a guard without thresholds.
    """
    settings = settings or ServeSettings()
    server = make_server(guard, settings)
    # uvicorn raises the signal again when it is done; the default would then end the process with an error.
    before = {
        number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        server.run()
    except SystemExit as error:
        raise InputError(
            f"the server could not listen on {settings.host}:{settings.port}; is the port taken?"
        ) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def make_server(guard: BeliefGuard, settings: ServeSettings) -> uvicorn.Server:
    """A uvicorn server of the app, not yet running. Raises as `serve` does."""
    try:
        import uvicorn

        from refusalscope.guard.serve.app import create_app
        from refusalscope.guard.serve.gate import is_loopback
    except ImportError as error:
        raise InputError(
            "serving a guard needs fastapi, uvicorn and prometheus-client; "
            "pip install 'refusalscope[serve]'"
        ) from error
    if not is_loopback(settings.host) and not os.environ.get(KEY_VARIABLE):
        raise InputError(
            f"the host {settings.host} is reached from other machines and no key is set; set the "
            f"environment variable {KEY_VARIABLE}, or listen on 127.0.0.1"
        )
    config = uvicorn.Config(
        create_app(guard, settings),
        host=settings.host,
        port=settings.port,
        # The app logs each request itself, with its route alone.
        access_log=False,
        log_config=LOGGING,
        lifespan="on",
        timeout_graceful_shutdown=int(settings.drain_s) + GRACE_S,
    )
    return uvicorn.Server(config)
