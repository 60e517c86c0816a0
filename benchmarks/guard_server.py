"""64 clients at once against a server of the belief guard, its answers beside the offline ones.

    python benchmarks/guard_server.py                         builtin:chat, 64 clients, 60 s
    python benchmarks/guard_server.py --seconds 5 --clients 16 --json figures.json

The server runs in a process of its own. Half of the calls are moderations (one to eight texts), a quarter
chats, a quarter streamed chats, at random. Fails on any status but 200 and 429, on a score further than
1e-4 from the one that the text has alone, offline, and on a reply that is not the offline one to the byte.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

from refusalscope.guard.belief_guard import BeliefGuard
from refusalscope.guard.serve import ServeSettings, serve
from refusalscope.model import ChatModel
from refusalscope.prompts import Prompt, bundled_pairs

NEAR = 1e-4
KINDS = ("moderation", "chat", "streamed chat")
WEIGHTS = (2, 1, 1)
MAX_TOKENS = 48


@dataclass
class Offline:
    """What the guard and the model say of each text without a server."""

    texts: list[str]
    scores: dict[str, float]
    replies: dict[str, str]


@dataclass
class Tally:
    """What was seen of one kind of call."""

    statuses: Counter = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    inputs: int = 0
    furthest: float = 0.0
    wrong_replies: int = 0


def main() -> int:
    args = arguments()
    if args.serve is not None:
        folder, port = args.serve
        guard = BeliefGuard.load(folder, ChatModel.load(args.model))
        serve(guard, ServeSettings(port=int(port), queue=args.queue))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        offline = prepare(args.model, Path(folder) / "guard")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, __file__, "--model", args.model, "--queue", str(args.queue)]
        child = subprocess.Popen([*command, "--serve", str(Path(folder) / "guard"), str(port)])
        try:
            tallies, took = asyncio.run(load(port, args, offline))
        finally:
            child.terminate()
            ended = child.wait(60)
    figures = summary(tallies, took, args.clients, ended)
    show(figures)
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if figures["broken"] else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="builtin:chat")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--queue", type=int, default=128, help="requests that may wait; then 429")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--serve", nargs=2, metavar=("GUARD", "PORT"), help=argparse.SUPPRESS)
    return parser.parse_args()


def prepare(model: str, folder: Path) -> Offline:
    """Fit a guard on half of the bundled pairs, save it, and score the other half one text at a time."""
    harmful, harmless = zip(*(pair.prompts() for pair in bundled_pairs()), strict=True)
    chat = ChatModel.load(model)
    guard = BeliefGuard(min_category=8).fit(chat, harmful[::2], harmless[::2])
    guard.calibrate(harmless[1::2], harmful[1::2])
    guard.save(folder)
    prompts = [*harmful[1::2], *harmless[1::2]]
    scores = {p.text: guard.beliefs([p])[0].delta_harmful for p in prompts}
    asked = [Prompt(p.id, p.text) for p in prompts]
    replies = chat.generate(chat.render(asked), max_new_tokens=MAX_TOKENS)
    texts = [p.text for p in prompts]
    said = {text: chat.decode(ids) for text, ids in zip(texts, replies, strict=True)}
    return Offline(texts, scores, said)


async def load(
    port: int, args: argparse.Namespace, offline: Offline
) -> tuple[dict[str, Tally], float]:
    """Every client calls again as soon as it was answered, until the time is up."""
    tallies = {kind: Tally() for kind in KINDS}
    limits = httpx.Limits(max_connections=args.clients, max_keepalive_connections=args.clients)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", timeout=120, limits=limits
    ) as http:
        await until_up(http)
        began = time.perf_counter()
        until = began + args.seconds
        await asyncio.gather(
            *(
                client(http, args.model, offline, tallies, until, random.Random(i))
                for i in range(args.clients)
            )
        )
        return tallies, time.perf_counter() - began


async def until_up(http: httpx.AsyncClient) -> None:
    for _ in range(600):
        try:
            if (await http.get("/health")).status_code == 200:
                return
        except httpx.ConnectError:
            await asyncio.sleep(0.1)
    raise SystemExit("the server did not come up within a minute")


async def client(
    http: httpx.AsyncClient,
    model: str,
    offline: Offline,
    tallies: dict[str, Tally],
    until: float,
    rng: random.Random,
) -> None:
    while time.perf_counter() < until:
        kind = rng.choices(KINDS, WEIGHTS)[0]
        tally, began = tallies[kind], time.perf_counter()
        try:
            if kind == "moderation":
                status = await moderate(http, offline, tally, rng)
            else:
                status = await chat(http, model, offline, tally, rng, kind != "chat", began)
        except httpx.HTTPError as error:
            tally.statuses[type(error).__name__] += 1
            continue
        tally.statuses[status] += 1
        if status == 200:
            tally.seconds.append(time.perf_counter() - began)
        elif status == 429:
            await asyncio.sleep(1)


async def moderate(
    http: httpx.AsyncClient, offline: Offline, tally: Tally, rng: random.Random
) -> int:
    texts = rng.sample(offline.texts, rng.randint(1, 8))
    answer = await http.post("/v1/moderations", json={"input": texts})
    if answer.status_code == 200:
        for text, result in zip(texts, answer.json()["results"], strict=True):
            compare(tally, result, offline.scores[text])
    return answer.status_code


async def chat(
    http: httpx.AsyncClient,
    model: str,
    offline: Offline,
    tally: Tally,
    rng: random.Random,
    streamed: bool,
    began: float,
) -> int:
    text = rng.choice(offline.texts)
    body = {
        **{"model": model, "messages": [{"role": "user", "content": text}]},
        **{"max_tokens": MAX_TOKENS, "stream": streamed},
    }
    said, verdict = "", None
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            await answer.aread()
            return answer.status_code
        if not streamed:
            whole = json.loads(await answer.aread())
            said, verdict = whole["choices"][0]["message"]["content"], whole["moderation"]
        else:
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                if verdict is None:
                    tally.firsts.append(time.perf_counter() - began)
                chunk = json.loads(line.removeprefix("data: "))
                verdict = chunk.get("moderation") or verdict
                said += "".join(one["delta"].get("content") or "" for one in chunk["choices"])
    compare(tally, verdict["input"]["results"][0] if verdict else None, offline.scores[text])
    tally.wrong_replies += said != offline.replies[text]
    return 200


def compare(tally: Tally, result: dict[str, Any] | None, score: float) -> None:
    tally.inputs += 1
    found = result["latent"]["delta_harmful"] if result else float("inf")
    tally.furthest = max(tally.furthest, abs(found - score))


def summary(tallies: dict[str, Tally], took: float, clients: int, ended: int) -> dict[str, Any]:
    """Figures of each kind, and what broke: an empty list is a pass."""
    broken = [] if ended == 0 else [f"the server ended with {ended}"]
    kinds = {}
    for kind, tally in tallies.items():
        bad = {str(s): n for s, n in tally.statuses.items() if s not in (200, 429)}
        if bad:
            broken.append(f"{kind}: {bad}")
        if not tally.seconds:
            broken.append(f"{kind}: no call was answered")
        if tally.furthest > NEAR:
            broken.append(f"{kind}: a score is {tally.furthest:.2g} from the offline one")
        if tally.wrong_replies:
            broken.append(f"{kind}: {tally.wrong_replies} replies differ from the offline ones")
        kinds[kind] = {
            "statuses": {str(status): n for status, n in tally.statuses.items()},
            "inputs": tally.inputs,
            "per_second": len(tally.seconds) / took,
            **{f"p{q}_s": percentile(tally.seconds, q) for q in (50, 95, 99)},
            "first_event_p50_s": percentile(tally.firsts, 50),
            "furthest_score": tally.furthest,
            "wrong_replies": tally.wrong_replies,
        }
    return {"clients": clients, "seconds": took, "kinds": kinds, "broken": broken}


def percentile(seconds: list[float], q: int) -> float | None:
    return float(np.percentile(seconds, q)) if seconds else None


def show(figures: dict[str, Any]) -> None:
    console = Console()
    table = Table(title=f"{figures['clients']} clients at once, {figures['seconds']:.1f} s")
    table.add_column("")
    rows: dict[str, list[str]] = {}
    for kind, found in figures["kinds"].items():
        table.add_column(kind, justify="right")
        for name, value in found.items():
            rows.setdefault(name, []).append(shown(value))
    for name, values in rows.items():
        table.add_row(name, *values)
    console.print(table)
    console.print("broken: " + "; ".join(figures["broken"]) if figures["broken"] else "all held")


def shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{status}: {n}" for status, n in value.items())
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    raise SystemExit(main())
