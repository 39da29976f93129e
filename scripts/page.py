"""Write the page of a run folder again: `python scripts/page.py <run folder>`."""

import sys

from classifier_lens.runner.report.page import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
