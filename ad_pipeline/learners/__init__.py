"""Learners: FTRL, LightGBM, wide & deep, the ensemble that mixes them, and its calibration."""
