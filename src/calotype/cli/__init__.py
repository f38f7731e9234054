"""The command line: `calotype …`, one module a command."""
