"""The command line: a lazy table of commands and one thin file per noun. Parse, call, print."""
