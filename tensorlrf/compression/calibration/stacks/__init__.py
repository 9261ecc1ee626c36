"""Layers that are the same matrix of different experts, and what is known of them together."""
