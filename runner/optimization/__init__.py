"""The loop over optimization steps and what it needs: objective, augmentation, checkpoints, memory planning.
Loss terms are in tasks/objectives/."""
