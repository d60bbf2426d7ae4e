"""Everything is declared in pyproject.toml; this file is the place of optional compiled extensions."""

from setuptools import setup

setup()
