"""Interventions: something is put into images or taken out, everything else equal, and the change of a classifier's
prediction is measured."""
