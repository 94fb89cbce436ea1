"""The report: a run's results in, one self-contained HTML page out; two runs side by side;
defences against each other; and the part of a model card that says what was found.
"""

from inversight.report.card import model_card, render_card
from inversight.report.compare import Comparison, compare, render_text
from inversight.report.contents import ExposureItem, GalleryItem, ReportData, load_report_data
from inversight.report.defences import render_defences, render_defences_text
from inversight.report.page import render
from inversight.report.verdict import headline, summary

__all__ = [
    "Comparison",
    "ExposureItem",
    "GalleryItem",
    "ReportData",
    "compare",
    "headline",
    "load_report_data",
    "model_card",
    "render",
    "render_card",
    "render_defences",
    "render_defences_text",
    "render_text",
    "summary",
]
