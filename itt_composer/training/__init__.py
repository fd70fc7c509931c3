"""Training: the trainer, checkpoints, sharding, and what happens between batches."""
