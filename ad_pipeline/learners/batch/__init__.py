"""The LightGBM expert: its trees, and when it is trained and scores."""
