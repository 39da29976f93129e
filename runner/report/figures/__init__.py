"""Figures like those of the papers, from run folders, as PNG and PDF: one module per kind of task.
The page of a run is in runner/report/page.py."""
