"""Tuning: the fastest path of every layer, by measurement."""
