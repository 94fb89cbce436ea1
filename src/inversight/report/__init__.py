"""The report: a run's results in, one self-contained HTML page out; and two runs side by side."""

from inversight.report.compare import Comparison, compare, render_text
from inversight.report.contents import GalleryItem, ReportData, load_report_data
from inversight.report.defences import render_defences, render_defences_text
from inversight.report.page import render
from inversight.report.verdict import flags

__all__ = [
    "Comparison",
    "GalleryItem",
    "ReportData",
    "compare",
    "flags",
    "load_report_data",
    "render",
    "render_defences",
    "render_defences_text",
    "render_text",
]
