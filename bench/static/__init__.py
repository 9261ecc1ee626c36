"""What can be known of the kernels' launches without a GPU: `python -m bench.static`."""
