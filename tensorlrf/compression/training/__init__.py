"""Decomposition in the course of training: callbacks for any loop, with any optimiser of torch."""
