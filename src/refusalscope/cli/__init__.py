"""The command line. Each command calls one library function; errors end in one sentence."""

from refusalscope.cli.app import main

__all__ = ["main"]
