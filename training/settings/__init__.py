"""What a command can be told, once for all commands."""
