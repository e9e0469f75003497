"""How good the probabilities are: measures, intervals, progressive scores, the truth."""
