"""Second moments of what a layer is fed, streamed: in full, in blocks, or sketched."""
