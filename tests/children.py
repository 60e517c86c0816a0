"""What tests that start a process of their own share."""

from __future__ import annotations

import signal


def hear_interrupts() -> None:
    """Run in a child before it starts: a suite started in the background passes on deafness to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
