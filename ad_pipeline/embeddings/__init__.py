"""User vectors: learned from what users did, refreshed out of step with serving, and compared."""
