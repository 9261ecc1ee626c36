"""The arguments of `compress` as a text that people write: YAML read strictly, line by line."""
