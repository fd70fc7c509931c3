"""The commands: `itt NAME …`, each in a module of its own that is imported when it is asked for."""
