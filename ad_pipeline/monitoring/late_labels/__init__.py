"""Ways of learning from late labels, replayed over one stream and judged by matured labels."""
