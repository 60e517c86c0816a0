"""A server in a process of its own: python serve_child.py GUARD PORT. A reply waits for a line of input."""

from __future__ import annotations

import sys

from refusalscope.guard.belief_guard import BeliefGuard
from refusalscope.guard.serve import ServeSettings, serve
from refusalscope.guard.serve.engine import Engine
from refusalscope.guard.serve.writer import Writer
from refusalscope.model import ChatModel


def main(folder: str, port: str) -> None:
    begin, start = Writer.begin, Engine.start

    def held(self, order):
        print("begun", flush=True)
        sys.stdin.readline()
        return begin(self, order)

    def told(self):
        start(self)
        print("ready", flush=True)

    Writer.begin, Engine.start = held, told  # type: ignore[method-assign]
    guard = BeliefGuard.load(folder, ChatModel.load("builtin:chat"))
    serve(guard, ServeSettings(port=int(port), blocking="off"))
    print("stopped", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
