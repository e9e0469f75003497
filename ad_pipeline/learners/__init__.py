"""Learners: FTRL, LightGBM, the ensemble that mixes them, and its calibration."""
