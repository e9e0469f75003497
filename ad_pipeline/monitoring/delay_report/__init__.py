"""How late labels come in a log, and what that means for learning: facts, made worlds, a page."""
