"""Forms of formats that are no product of small factors, or hold more than those."""
