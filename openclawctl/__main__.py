"""`python -m openclawctl`: the command line, without its script on `$PATH`."""

from openclawctl.cli import main

if __name__ == "__main__":
    main()
