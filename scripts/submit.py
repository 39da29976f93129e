"""Submit a run, or a sweep, to a cluster's queue and show its status: `python scripts/submit.py --help`."""

import sys

from classifier_lens.runner.cluster.submit import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
