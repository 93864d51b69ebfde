"""Inference backends behind one protocol; each library is imported at use."""
