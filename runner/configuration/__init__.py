"""From the overrides of a command to checked values: composition by Hydra, types and ranges, error messages.
Defaults are in conf/."""
