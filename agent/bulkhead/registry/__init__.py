"""Who the nodes are: one interface, and what gives the records behind it."""
