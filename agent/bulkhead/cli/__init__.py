"""The command line: arguments and rendering only."""
