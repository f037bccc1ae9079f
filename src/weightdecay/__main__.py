"""Runs the command line as `python -m weightdecay`."""

from weightdecay.cli import main

main()
