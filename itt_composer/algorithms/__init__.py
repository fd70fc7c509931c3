"""Composer algorithms: what changes the model or the step during training."""
