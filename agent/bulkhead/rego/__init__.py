"""Rego of the policy repository: decisions per request, guardrails over a commit."""
