"""`python -m fdqn` is the command `fdqn`."""

from fdqn.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
