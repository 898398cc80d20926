"""Evaluation of students: accuracy, long tails, features, linear fits, calibration."""

from gendd.evaluation.scores import (
    BATCH_SIZE,
    COSTS_RISE,
    Answers,
    ReadoutPick,
    Scores,
    evaluate,
    pick_readout,
)

__all__ = ["BATCH_SIZE", "COSTS_RISE", "Answers", "ReadoutPick", "Scores", "evaluate", "pick_readout"]
