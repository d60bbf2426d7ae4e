"""Everything is declared in pyproject.toml; this is the place of compiled extensions."""

from setuptools import setup

setup()
