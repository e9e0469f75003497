"""What user vectors are worth: to a ranker, to retrieval, by their age, size and user's activity."""
