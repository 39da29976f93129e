"""Loss terms and distances: each a function from a scene to one value per sample, lower is better.
How they are weighted and summed is in runner/optimization/objective.py."""
