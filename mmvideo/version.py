"""The version of mmvideo."""

__version__ = '0.1.0'
