"""The real command in a process of its own, which finds the families in tests/toy too."""

from pathlib import Path

from limner import families

families.__path__.append(str(Path(__file__).parent / "toy"))

if __name__ == "__main__":
    from limner.cli import main

    main()
