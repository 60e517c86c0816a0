"""Intervals and tests: the one place of every statistical formula in this package.

SciPy, scikit-learn and statsmodels compute wherever they have the method. Every function that draws
at random takes a seed or a generator, and says what it returns when the data cannot carry the
question (too few rows, one class, no spread) instead of failing or returning a false certainty.
"""

from refusalscope.stats.auroc import auroc
from refusalscope.stats.bootstrap import mean_interval
from refusalscope.stats.calibration import Isotonic, Platt, Probability, brier, ece, fit_probability
from refusalscope.stats.correction import CorrectedRate, rogan_gladen
from refusalscope.stats.equivalence import Equivalence, tost
from refusalscope.stats.interval import Interval
from refusalscope.stats.max_t import MaxT, max_t_signflip
from refusalscope.stats.multiple import fdr_bh
from refusalscope.stats.paired import McNemar, PairedDifference, mcnemar, paired_difference
from refusalscope.stats.paired_rates import paired_rates
from refusalscope.stats.proportions import clopper_pearson, wilson
from refusalscope.stats.thresholds import Rule, Threshold, fpr_threshold, negatives_needed

__all__ = [
    "CorrectedRate",
    "Equivalence",
    "Interval",
    "Isotonic",
    "MaxT",
    "McNemar",
    "PairedDifference",
    "Platt",
    "Probability",
    "Rule",
    "Threshold",
    "auroc",
    "brier",
    "clopper_pearson",
    "ece",
    "fdr_bh",
    "fit_probability",
    "fpr_threshold",
    "max_t_signflip",
    "mcnemar",
    "mean_interval",
    "negatives_needed",
    "paired_difference",
    "paired_rates",
    "rogan_gladen",
    "tost",
    "wilson",
]
