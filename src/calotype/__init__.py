"""Calotype, an OpenStack Image service. Start reading at ARCHITECTURE.md, then `app.py`."""

__version__ = "0.1.0"
