"""Recipes: layers of YAML, their schema and checks, and the components that they name. No torch."""
