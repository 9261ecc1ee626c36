"""Plans: which layer gets which factors, stated, made and checked."""
