"""Captions of images: a template, a file, CLIP's ranking of words, a vision-language model.
How captions are edited is in tasks/prompts/."""
