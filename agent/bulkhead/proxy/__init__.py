"""What the node's Envoy is told, as a pure function of a commit's mesh and of the node's facts."""
