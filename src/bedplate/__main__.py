"""`python -m bedplate`: the command, where its script is not on the path."""

from bedplate.cli.app import main

if __name__ == "__main__":  # whoever only looks through the modules runs nothing
    main()
