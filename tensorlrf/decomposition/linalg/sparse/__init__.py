"""Sparse tensors as decompositions see them: their nonzeros, and products with these alone."""
