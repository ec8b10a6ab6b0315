"""Who is talking: selectors, ties between them, and the numbers that stand for identities."""
