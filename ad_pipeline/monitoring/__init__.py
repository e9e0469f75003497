"""Whether the world or the serving path has changed: drift of features, parity of decisions."""
