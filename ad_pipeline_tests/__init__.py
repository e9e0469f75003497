"""Tests, in the same rooms as the package; those of the foundations stand beside the rooms."""
