"""Generated tables: configuration keys in docs/, ImageNet's classes and their hypernyms.
Tables of results are written by scripts/evaluate/."""
