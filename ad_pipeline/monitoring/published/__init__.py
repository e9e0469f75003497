"""Published protocols for late labels, on the public logs that they were published on."""
