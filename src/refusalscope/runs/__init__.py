"""The run folder: what was run, its tables and arrays, written so that nothing is half-written.

`Run.create` opens one for writing, `open_run` for reading. DESIGN.md section 5 is the contract.
"""

from refusalscope.runs.files import write_atomic
from refusalscope.runs.run import Run, refuse_occupied, whole_or_absent
from refusalscope.runs.shards import Shards
from refusalscope.runs.view import RunView, open_run

__all__ = [
    "Run",
    "RunView",
    "Shards",
    "open_run",
    "refuse_occupied",
    "whole_or_absent",
    "write_atomic",
]
