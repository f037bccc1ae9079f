"""Imports the page of every rule, which registers it: the folders are the index."""

import pkgutil
from importlib import import_module

from weightdecay.update_rules import decays, directions, penalties

for _folder in (penalties, directions, decays):
    for _page in pkgutil.iter_modules(_folder.__path__, _folder.__name__ + "."):
        import_module(_page.name)
