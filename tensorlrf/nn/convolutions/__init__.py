"""Convolutions that are none of torch's Conv layers as they stand: transposed ones."""
