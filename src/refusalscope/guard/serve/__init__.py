"""A server of the belief guard in OpenAI's shape: moderations, and chat whose own prefill is read.

    from refusalscope.guard.serve import ServeSettings, serve
    serve(guard, ServeSettings(blocking="block"))

It needs the extra `refusalscope[serve]`; the key of its clients is read from REFUSALSCOPE_API_KEY.
"""

from __future__ import annotations

from refusalscope._lazy import lazy

_EXPORTS = {
    "ServeSettings": "refusalscope.guard.serve.settings",
    "create_app": "refusalscope.guard.serve.app",
    "serve": "refusalscope.guard.serve.run",
}

__all__ = list(_EXPORTS)

__getattr__ = lazy(__name__, _EXPORTS)
