"""Errors, files, text, tables and processes, which every other room uses."""
