"""Batch normalisations folded into the layers that they follow."""
