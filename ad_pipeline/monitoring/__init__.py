"""Whether the world or the serving path has changed, and whether labels that come late mislead."""
