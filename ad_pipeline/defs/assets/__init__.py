"""Assets, one module a room: each calls its room and reports what came out."""
