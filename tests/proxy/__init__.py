"""The sidecar over real sockets: what an upstream is sent, and what a client gets."""
