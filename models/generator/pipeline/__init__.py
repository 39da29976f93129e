"""Pipelines in diffusers' folder layout: their networks, noise levels and adapters, checked before weights are read.
Sampling is in models/generator/."""
