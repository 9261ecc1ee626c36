"""Decompositions with a posterior: the rank is found, and factors have variances."""
