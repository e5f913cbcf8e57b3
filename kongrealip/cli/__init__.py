"""The command line: the room that prints."""
