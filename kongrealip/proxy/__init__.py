"""The sidecar: HTTP in, HTTP out to a service in any language, with the headers that Kong would send."""
