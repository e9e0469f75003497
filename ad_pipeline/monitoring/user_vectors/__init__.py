"""What user vectors are worth to a ranker and to retrieval, also of users hardly known."""
