"""What the parts of a sum are made by: a matrix of low rank, and one in few bits."""
