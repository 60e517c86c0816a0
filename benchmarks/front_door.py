"""What a user waits for: the audit of the embedded model, its peak memory, `--help`, and the import.

    python benchmarks/front_door.py                 one audit, 11 starts

Times are medians on whatever machine this is, so they stand in docs/results.md with the machine and never in a
test; the audit's forwards and token-layer evaluations, printed beside them, do not vary.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from refusalscope.runs import open_run

COMMAND = [sys.executable, "-m", "refusalscope.cli"]


def seconds(argv: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(argv, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--starts", type=int, default=11)
    args = parser.parse_args()
    print(f"refusalscope --help: {median([*COMMAND, '--help'], args.starts):.3f} s")
    empty = median([sys.executable, "-c", "pass"], args.starts)
    loaded = median([sys.executable, "-c", "import refusalscope"], args.starts)
    print(f"import refusalscope: {loaded - empty:.3f} s over an empty interpreter")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        took = seconds([*COMMAND, "audit", "builtin:chat", "--out", str(out), "--quiet"])
        cost = open_run(out).info["cost"]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"refusalscope audit builtin:chat: {took:.1f} s, peak memory {peak:.2f} GiB")
    print(f"  {cost['forwards']} forwards, {cost['token_layers']} token-layer evaluations")


def median(argv: list[str], n: int) -> float:
    return statistics.median(seconds(argv) for _ in range(n))


if __name__ == "__main__":
    main()
