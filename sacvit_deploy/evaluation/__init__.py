"""Accuracy, cost and latency of bundles, and exit thresholds."""
