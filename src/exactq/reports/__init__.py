"""A run -> one self-contained HTML page, and JSON."""

from exactq.reports.build import HTML, JSON, NODES, report, write
from exactq.reports.histograms import activation_histograms
from exactq.reports.rendering import page

__all__ = ["HTML", "JSON", "NODES", "activation_histograms", "page", "report", "write"]
