"""Drift: what changed, how sure that is, why, and which action fits; a module for each question."""
