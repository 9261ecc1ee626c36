"""Tables of rows that are looked up: bags of them, heads tied to them, vocabularies that grow."""
