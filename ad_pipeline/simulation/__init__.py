"""The outside world: an exchange with known truth, and the driver that serves through it."""
