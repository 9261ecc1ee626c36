"""A tensor contracted with factors of its modes, for whatever family has such factors."""
