"""What the tests of several commands share: files as a user writes them, and a command line that must fail."""

from __future__ import annotations

import json
from pathlib import Path

from refusalscope.cli.app import run


def jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fails(capsys, argv: list[str], *words: str, status: int = 1) -> str:
    """Run a command line that must fail; return its one sentence."""
    capsys.readouterr()
    assert run(argv) == status
    message = capsys.readouterr().err
    assert "Traceback" not in message
    (sentence,) = message.splitlines()
    assert sentence.startswith("error: ")
    assert "fault of refusalscope" not in sentence
    for word in words:
        assert word in sentence, sentence
    return sentence
