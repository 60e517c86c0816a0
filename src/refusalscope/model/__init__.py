"""The patient: load a chat model, locate its parts and positions, run exact edits cheaply."""

from refusalscope.model.anatomy import Anatomy, Architecture, inspect, register
from refusalscope.model.anchors import Rendered, render
from refusalscope.model.chat_model import ChatModel
from refusalscope.model.clean import Clean, Plan, capture, run_clean
from refusalscope.model.edits import (
    Add,
    Edit,
    Frozen,
    ProjectOut,
    Replace,
    Scale,
    Variant,
    everywhere,
)
from refusalscope.model.engine import Cost
from refusalscope.model.metrics import (
    KL,
    LogitDifference,
    Metric,
    OpeningProbability,
    RefusalMargin,
    RefusalScore,
    ReplyKL,
    ReplyNLL,
    StateMetric,
    learn_openings,
)
from refusalscope.model.plan import Measurement, measure
from refusalscope.model.sites import Site

__all__ = [
    "KL",
    "Add",
    "Anatomy",
    "Architecture",
    "ChatModel",
    "Clean",
    "Cost",
    "Edit",
    "Frozen",
    "LogitDifference",
    "Measurement",
    "Metric",
    "OpeningProbability",
    "Plan",
    "ProjectOut",
    "RefusalMargin",
    "RefusalScore",
    "Rendered",
    "Replace",
    "ReplyKL",
    "ReplyNLL",
    "Scale",
    "Site",
    "StateMetric",
    "Variant",
    "capture",
    "everywhere",
    "inspect",
    "learn_openings",
    "measure",
    "register",
    "render",
    "run_clean",
]
