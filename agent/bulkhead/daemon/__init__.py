"""The resident agent: the only room that wires the others together."""
