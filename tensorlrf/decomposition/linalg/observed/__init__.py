"""Least squares where some entries are not known, or entries count by weights of their own."""
