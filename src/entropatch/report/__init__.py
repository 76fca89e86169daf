"""Runs of the other commands gathered into one self-contained page."""

from entropatch.report.content import Picture, ReportError, Run, Table
from entropatch.report.page import write_report
from entropatch.report.runs import read_run

__all__ = ["Picture", "ReportError", "Run", "Table", "read_run", "write_report"]
