"""Which columns of a matrix, or rows, stand for all others."""
