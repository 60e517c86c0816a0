"""Judges of replies: does this reply refuse?"""

from refusalscope.judge.phrases import PRESETS, Verdict, judge_replies, judge_reply

__all__ = ["PRESETS", "Verdict", "judge_replies", "judge_reply"]
