"""Holds the paper's figures, and makes the tables that put ours beside them."""
