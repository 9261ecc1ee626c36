"""Factors without a negative entry, and factors under other constraints."""
