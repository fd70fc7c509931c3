"""The folder of a run, its checkpoints, and any model by name."""
