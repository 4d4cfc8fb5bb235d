"""``python -m lamina`` is the command ``lamina``."""

from lamina.cli import main

main()
