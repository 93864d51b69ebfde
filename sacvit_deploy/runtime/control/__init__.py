"""What watches a pipeline, and what steers its exit."""
