"""FTRL-Proximal: kernel, state and clock, River's protocol, exported weights; it knows no log."""
