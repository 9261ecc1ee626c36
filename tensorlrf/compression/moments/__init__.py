"""Second moments of the inputs of all layers as a value: they add up, and a file keeps them."""
