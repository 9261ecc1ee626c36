"""Block low-rank, hierarchical, Monarch and BLAST matrices."""
