"""What happened: the contract of the event tables, the log files, and how files become tables."""
