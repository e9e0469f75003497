"""Parity of what was served: compared, its causes named, its objectives kept or not."""
