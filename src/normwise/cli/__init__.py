"""The command line: a module for each command, or for a few of a kind. torch is imported only where it is needed."""

from normwise.cli.entry import app as app
from normwise.cli.entry import main as main
