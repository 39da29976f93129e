"""How a command's words become checked values: composition by Hydra, types and ranges, messages about mistakes.
Defaults are in conf/."""
