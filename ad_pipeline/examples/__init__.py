"""From events to labels: what is final, what a learner may see when, and the history of both."""
