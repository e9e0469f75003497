"""Checks of what watches the pipeline, a module a topic."""
