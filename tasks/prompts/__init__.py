"""Prompts and captions: class-name replacement, target classes, the search for start prompts and context phrases.
Prompts as parameters are in models/generator/prompt_tuning.py."""
