"""What should be in the kernel, as pure functions of a commit, a host's name and a time."""
