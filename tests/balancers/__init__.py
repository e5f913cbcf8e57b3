"""Real load balancers in front of the real server."""
