"""Calls drawn from the server's own description: whatever is sent, no answer is the server's failure."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from guard.serving import LOOSE, MODEL, fitted
from refusalscope.guard.serve.app import create_app
from refusalscope.guard.serve.settings import KEY_VARIABLE, ServeSettings

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

KEY = {"Authorization": "Bearer contract"}
CALLS = [
    ("/v1/moderations", "POST"),
    ("/v1/chat/completions", "POST"),
    ("/v1/models", "GET"),
    ("/health", "GET"),
    ("/metrics", "GET"),
    ("/playground", "GET"),
]


@pytest.fixture(scope="module")
def api():
    with pytest.MonkeyPatch.context() as patch:
        # With a key the name by which the test client calls does not matter.
        patch.setenv(KEY_VARIABLE, "contract")
        app = create_app(fitted(), ServeSettings(operating_point=LOOSE, max_new_tokens=8))
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def test_every_path_of_the_description_is_called(api):
    assert set(api.raw_schema["paths"]) == {path for path, _ in CALLS}


# A route without parameters has no wrong ones.
DRAWN = [
    (path, method, mode)
    for path, method in CALLS
    for mode in (("positive", "negative") if method == "POST" else ("positive",))
]


@pytest.mark.parametrize(("path", "method", "mode"), DRAWN)
def test_no_call_fails_the_server(api, path, method, mode):
    operation = api[path][method]
    statuses = set()

    @given(operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    @settings(
        max_examples=80 if method == "POST" else 2,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def drawn(case):
        if isinstance(case.body, dict) and path.endswith("completions"):
            # No draw would find the one model there is.
            case.body["model"] = MODEL
        answer = case.call(headers=KEY)
        statuses.add(answer.status_code)
        case.validate_response(
            answer,
            checks=[
                schemathesis.checks.not_a_server_error,
                schemathesis.specs.openapi.checks.response_schema_conformance,
                schemathesis.specs.openapi.checks.content_type_conformance,
                schemathesis.specs.openapi.checks.status_code_conformance,
            ],
        )

    drawn()
    assert (200 if mode == "positive" else 400) in statuses
