"""Tests of the room that watches for drift and parity."""
