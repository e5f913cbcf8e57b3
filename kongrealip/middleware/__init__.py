"""Doors for applications that already run somewhere."""
