"""Many tests at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from statsmodels.stats.multitest import multipletests

from refusalscope.errors import InputError


def fdr_bh(p: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Benjamini-Hochberg adjusted p-values [n]; below q means "found at a false discovery rate q".

    A NaN (a test that could not be made) stays NaN and does not count among the tests.
    Raises InputError for values outside 0..1.
    """
    values = np.asarray(p, dtype=np.float64)
    made = ~np.isnan(values)
    if values.ndim != 1 or ((values[made] < 0) | (values[made] > 1)).any():
        raise InputError("expected one column of p-values between 0 and 1")
    adjusted = np.full(values.shape, np.nan)
    if made.any():
        adjusted[made] = multipletests(values[made], method="fdr_bh")[1]
    return adjusted
