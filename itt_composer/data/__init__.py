"""MDS shards → batches."""
