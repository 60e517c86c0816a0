"""Rows of a hub dataset, through the `datasets` library where it is installed."""

from __future__ import annotations

import hashlib
import json
import re

from refusalscope.errors import InputError
from refusalscope.prompts.files import RawTable

PREFIX = "hf:"
_ADDRESS = re.compile(r"hf:(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?:(?P<split>[\w.-]+)")


def read_hub_table(address: str) -> RawTable:
    """The rows of `hf:owner/name:split` or `hf:owner/name:config:split`.

    `sha256` is of the rows as JSON lines. Raises InputError where the address does not parse,
    the library is absent or the dataset does not load.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise InputError(
            f"{address!r} is not a hub dataset; write hf:owner/name:split "
            "or hf:owner/name:config:split"
        )
    try:
        from datasets import load_dataset
    except ImportError:
        raise InputError(
            f"{address} needs the datasets library; install refusalscope[train], "
            "or download the data and pass the file"
        ) from None
    try:
        data = load_dataset(match["name"], match["config"], split=match["split"])
    # The library passes on the errors of several network and file layers, without a common base.
    except Exception as error:  # noqa: BLE001
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{address} does not load ({reason}); check the name, the split and the connection"
        ) from None
    rows = tuple(enumerate((dict(row) for row in data), 1))
    digest = hashlib.sha256()
    for _, row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return RawTable(
        name=match["name"].split("/")[1],
        path=address,
        sha256=digest.hexdigest(),
        columns=tuple(data.column_names),
        rows=rows,
        bad=(),
        licence=data.info.license or None,
    )
