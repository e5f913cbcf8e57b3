"""Raw TCP for services that are not ASGI: a preamble in, a preamble out, and bytes in between."""
