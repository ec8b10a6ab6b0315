"""The agent's control socket: both ends, and the language between them."""
