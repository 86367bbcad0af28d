"""``python -m cutedge`` is the command ``cutedge``."""

from cli.main import main

if __name__ == "__main__":
    main()
