"""Search: methods and orders at several keep rates, on one model and data set, as trials of an Optuna study.

    settings = SearchSettings(ModelSpec("deit_small_patch16_224", "pretrained"), keep_rates=(0.7, 0.5))
    found = search(settings, data, "runs/search")

Started several times, on one machine or on many that share a database, the workers share the work. Needs the extra
`search` (Optuna).
"""

from entropatch.measure.budget import BudgetError
from entropatch.search.findings import write_report
from entropatch.search.patience import StudyUnreachableError
from entropatch.search.points import SCOPES, Point
from entropatch.search.recommendation import TOLERANCE
from entropatch.search.searching import Found, Teamwork, report, search
from entropatch.search.settings import KEEP_RATES, SearchSettings, default_methods
from entropatch.search.study import StudyMismatchError
from entropatch.search.worker import Standing

__all__ = [
    "KEEP_RATES",
    "SCOPES",
    "TOLERANCE",
    "BudgetError",
    "Found",
    "Point",
    "SearchSettings",
    "Standing",
    "StudyMismatchError",
    "StudyUnreachableError",
    "Teamwork",
    "default_methods",
    "report",
    "search",
    "write_report",
]
