"""Mixtures of the experts and their calibration, chosen and fitted on matured rows."""
