"""Which way of learning from late labels is right for a log: a benchmark of arms, and a report."""
