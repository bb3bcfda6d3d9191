"""The CNI executable. ``plugin.py`` is a script of one file: `meshctl cni install` copies it."""
