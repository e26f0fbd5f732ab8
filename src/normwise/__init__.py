"""Which normalization should this network use?"""

__version__ = "0.1.0"
