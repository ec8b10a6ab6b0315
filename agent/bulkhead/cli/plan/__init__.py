"""What a change does: how it is worked out, and one file for each form it takes."""
