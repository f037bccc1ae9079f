"""Runs the command line as `python -m weightdecay`."""

import os
import sys

if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
    del sys.path[0]  # the command line looks into this folder last: a random.py here must not take the place of Python's

from weightdecay.cli import main

main()
