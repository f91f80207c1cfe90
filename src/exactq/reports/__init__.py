"""A run -> one self-contained HTML page, and JSON."""

from exactq.reports.build import HTML, JSON, NODES, report, write
from exactq.reports.histograms import activation_histograms
from exactq.reports.integers import explained_integers
from exactq.reports.rendering import page
from exactq.reports.verdict import fine_tuning

__all__ = ["HTML", "JSON", "NODES", "activation_histograms", "explained_integers", "fine_tuning", "page", "report", "write"]
