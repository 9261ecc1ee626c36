"""Convolutions that are none of torch's Conv layers as they stand, transposed ones; and what those
on factors have in common with the plain ones."""
