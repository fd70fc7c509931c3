"""Composer callbacks and loggers: what watches training."""
