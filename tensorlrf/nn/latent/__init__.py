"""Attentions whose cache holds what keys and values are made of, in place of these."""
