"""What a tensor would lose at each rank, before anything is fitted."""
