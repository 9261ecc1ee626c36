"""Models of transformers with factored layers, as transformers knows and writes them."""
