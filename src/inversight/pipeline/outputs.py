"""What a run folder shows beside its tables: the report and the model card."""

from __future__ import annotations

from pathlib import Path

from inversight.core.run import write_json, write_text
from inversight.report import ReportData, model_card, render, render_card
from inversight.report.reading import read_mapping

REPORT = "report.html"
CARD = "model-card"


def write_report(run: Path, data: ReportData) -> Path:
    """Write RUN/report.html, RUN/model-card.md and RUN/model-card.json; returns the report's path.

    Each is written anew and whole, or not at all.

    Raises:
        RunError: ``run`` has no manifest.
    """
    card = model_card(read_mapping(run, "run.json"), data.metrics)
    write_text(run / REPORT, render(data))
    write_json(run / f"{CARD}.json", card)
    write_text(run / f"{CARD}.md", render_card(card))
    return run / REPORT
