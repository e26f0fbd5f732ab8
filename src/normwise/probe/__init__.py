"""Probing: hooks and measurements on a running model, and what they say is wrong with its normalization."""
