"""`python -m weightsmith` is the command `weightsmith`."""

from weightsmith.cli import main

if __name__ == "__main__":
    main()
