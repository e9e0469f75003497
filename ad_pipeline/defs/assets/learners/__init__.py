"""The experts, what they said when it counted, and the ensemble that mixes them."""
