"""Formats that are no product of smaller tensors: what is stored says the entries themselves."""
