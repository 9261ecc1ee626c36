"""Several matrices or tensors that share factors."""
