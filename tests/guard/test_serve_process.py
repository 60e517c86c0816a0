"""The server as a process: SIGTERM under load, a taken port, and a reader without the extra."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from guard.serving import MODEL, WAIT_S, fitted, offline_reply, texts
from refusalscope.errors import GuardError, InputError
from refusalscope.guard.belief_guard import BeliefGuard
from refusalscope.guard.serve.run import make_server, serve
from refusalscope.guard.serve.settings import ServeSettings

CHILD = Path(__file__).with_name("serve_child.py")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def test_told_to_stop_under_load_it_finishes_what_it_has_and_refuses_the_rest(tmp_path):
    port, folder = free_port(), fitted().save(tmp_path / "guard")
    child = subprocess.Popen(
        [sys.executable, str(CHILD), str(folder), str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout.readline() == "ready\n"
        transport = httpx.HTTPTransport(retries=8)
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=WAIT_S, transport=transport
        ) as http:
            assert http.get("/health").status_code == 200

        def ask(text: str) -> str:
            body = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
            answer = httpx.post(
                f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=WAIT_S
            )
            return answer.json()["choices"][0]["message"]["content"]

        given, metrics = texts()[:3], f"http://127.0.0.1:{port}/metrics"
        with ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(ask, text) for text in given]
            # The first is at the model, which waits; the others are in the queue.
            assert child.stdout.readline() == "begun\n"
            while "refusalscope_queue_depth 2.0" not in httpx.get(metrics, timeout=WAIT_S).text:
                assert not any(one.done() for one in asked)
            child.send_signal(signal.SIGTERM)
            child.stdin.write("\n" * 8)
            child.stdin.flush()
            done = [one.result(WAIT_S) for one in asked]
        out, err = child.communicate(timeout=WAIT_S)
    finally:
        child.kill()
    assert child.returncode == 0
    assert out.endswith("stopped\n")
    assert "Traceback" not in err
    assert done == [offline_reply(text) for text in given]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/health")


def test_a_taken_port_is_told_in_a_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"could not listen on 127.0.0.1:{port}"):
            serve(fitted(), ServeSettings(port=port))


def test_a_guard_without_thresholds_is_not_served():
    guard = BeliefGuard()
    guard.__dict__.update(vars(fitted()), calibration_=None)
    with pytest.raises(GuardError, match="not calibrated"):
        make_server(guard, ServeSettings())
    with pytest.raises(GuardError, match=r"no operating point 'fpr=0\.9'"):
        make_server(fitted(), ServeSettings(operating_point="fpr=0.9"))


def test_without_the_extra_the_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(InputError, match=r"pip install 'refusalscope\[serve\]'"):
        make_server(fitted(), ServeSettings())
