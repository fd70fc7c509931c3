"""Holds the server: an OpenAI-compatible API around one model."""
