"""The configuration: one folder per group, one YAML file per option; a default stands here and nowhere else."""
