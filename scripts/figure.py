"""Compose a figure of run folders: `python scripts/figure.py <run folder> ... [name=] [out=] [max_blocks=]`."""

import sys

from classifier_lens.runner.report.figures.figure import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
