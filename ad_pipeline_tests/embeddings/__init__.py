"""Tests of the room ``embeddings``."""
