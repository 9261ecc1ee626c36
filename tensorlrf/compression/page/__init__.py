"""Pages that one can show: reports as one file of HTML that needs nothing else."""
