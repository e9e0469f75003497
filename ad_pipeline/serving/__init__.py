"""What leaves the pipeline: the bundle, its scorer, and the pointer that says which one serves."""
