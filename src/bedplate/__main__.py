"""`python -m bedplate`: the command, where its script is not on the path."""

from bedplate.cli.app import main

main()
