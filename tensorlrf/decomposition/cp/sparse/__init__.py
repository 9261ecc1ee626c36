"""CP of sparse tensors."""
