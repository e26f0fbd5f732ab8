"""``python -m normwise``: the command line where its script is not on the path."""

from normwise.cli import main

if __name__ == "__main__":
    main()
