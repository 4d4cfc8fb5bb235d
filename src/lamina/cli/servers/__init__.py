"""The servers of ``lamina serve``, one module each, imported when it is used."""
