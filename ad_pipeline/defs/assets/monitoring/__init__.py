"""What watches the pipeline, a module a topic."""
