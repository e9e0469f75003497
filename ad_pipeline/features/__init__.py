"""What is known of an impression before it is served, encoded for the learners.

Feature contract and encoding, hourly entity rates, and the dictionary from slots back to values.
"""
