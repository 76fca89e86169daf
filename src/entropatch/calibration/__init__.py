"""The best setting for one model: blocks, criteria, orders and rates from unlabelled images, under a budget."""

from entropatch.calibration.answers import OBJECTIVES
from entropatch.calibration.calibrating import calibrate, calibrated
from entropatch.calibration.finding import Calibration, Row
from entropatch.calibration.goals import BudgetError, Goal
from entropatch.calibration.thresholds import calibrate_threshold

__all__ = ["OBJECTIVES", "BudgetError", "Calibration", "Goal", "Row", "calibrate", "calibrate_threshold", "calibrated"]
