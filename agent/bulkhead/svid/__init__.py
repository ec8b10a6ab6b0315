"""Cryptographic identities to the SPIFFE standard: issued, handed out, and checked."""
