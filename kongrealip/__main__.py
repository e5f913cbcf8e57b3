"""``python -m kongrealip``."""

from __future__ import annotations

from kongrealip.cli.main import main

if __name__ == "__main__":
    main()
