"""The report: one HTML page, written from a run folder alone, that needs no network.

Plotly is imported with the page, not with the verdict, which the command line prints on its own.
"""

from refusalscope._lazy import lazy

__all__ = ["write_report"]

__getattr__ = lazy(__name__, {"write_report": "refusalscope.report.page"})
