"""What authors wrote: from the blobs of a commit to a PolicySet, and everything that can be said about it."""
