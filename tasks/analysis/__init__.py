"""What is computed from finished explanations: activation score, audit verdicts, agreement with labels, retrieval.
Loss terms are in tasks/objectives/."""
