"""Kubernetes policies, read from the same repository as the native language: each dialect to `policy.cluster`."""
