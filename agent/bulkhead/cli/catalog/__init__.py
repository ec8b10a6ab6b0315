"""The service catalogue: the command, and one file for each form it takes."""
