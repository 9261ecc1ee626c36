"""What a layer computes, seen by running it."""
