"""Watches a pipeline, and steers its exit."""
