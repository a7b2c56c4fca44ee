"""The live display: what browsers are sent of the machine, and the pages that draw it (docs/display.md)."""
