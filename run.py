"""`python run.py task=uvce classifier=vit_b` runs an experiment: README.md."""

import sys
from pathlib import Path

# Python puts this folder first, where `models` and `data` would hide the packages of these names that a user has.
sys.path[:] = [path for path in sys.path if path != str(Path(__file__).resolve().parent)]

from classifier_lens.runner.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
