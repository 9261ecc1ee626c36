"""The ranks of a process group of torch.distributed, where a call is made on all of them."""
