"""Sockets: the listeners of KONG_PROXY_LISTEN, and uvicorn's protocols behind them."""
