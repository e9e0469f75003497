"""The wide & deep expert: its table of embeddings, its step in JAX, and its scores without JAX."""
