"""Tables that are generated: options in docs/, ImageNet's classes and their kinds.
Tables of results are written by scripts/evaluate/."""
