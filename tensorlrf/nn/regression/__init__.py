"""Layers that map tensors to tensors without flattening them: contraction and regression."""
