"""The static page of a run or a sweep: tables, charts, templates.
Figures for papers are in runner/report/figures/."""
