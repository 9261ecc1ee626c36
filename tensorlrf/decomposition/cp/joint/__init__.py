"""Steps in all factors of a CP model at once, on a tensor compressed to its leading directions."""
