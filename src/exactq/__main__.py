"""`python -m exactq` is the shell door."""

from exactq.cli import main

if __name__ == "__main__":
    main()
