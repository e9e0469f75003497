"""Asset checks, one module a room; those that gate promotion are blocking, the others warn."""
