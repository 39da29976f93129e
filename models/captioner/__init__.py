"""Captions of images: a template, a file, CLIP's ranking of words, a vision-language model.
The editing of captions is in tasks/prompts/."""
