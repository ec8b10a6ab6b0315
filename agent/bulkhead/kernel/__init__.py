"""The only room that touches the kernel: loading, maps, hooks, events.

`libbpf` and `rtnetlink` are the two ways in; everything else here is built on them. Nothing in this package imports bcc
except `load`, which runs in its own short-lived process.
"""
