"""Where classifiers come from: one file per source of weights, each loader named by YAMLs in `conf/classifier/`.

Every loader returns a frozen, checked `ImageClassifier` and raises UserError, in one line, for what the user can
put right: a missing file, an unknown name, labels that do not fit.
"""
