"""CP of a tensor of which some entries are not known."""
