"""The command line: `failavoid`."""
